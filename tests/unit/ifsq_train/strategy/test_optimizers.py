"""Optimizers and learning-rate schedules."""

from pathlib import Path

import pytest
import torch
from torch import nn

from ifsq_train.config import OptimConfig
from ifsq_train.strategy.muon import Muon, orthogonalize
from ifsq_train.strategy.optimizers import build_optimizer, lr_factor
from tests.support.goldens import Golden


def test_muon_takes_the_released_steps(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "muon")
    names = ["tall", "wide", "square", "vec"]
    parameters = {name: nn.Parameter(golden[f"{name}.init"].clone()) for name in names}
    optimizer = Muon(parameters.values(), lr=golden.config["lr"], weight_decay=golden.config["wd"])
    step = 0
    while f"tall.grad{step}" in golden.tensors:
        for name, parameter in parameters.items():
            parameter.grad = golden[f"{name}.grad{step}"].clone()
        optimizer.step()
        for name, parameter in parameters.items():
            # The iterations run in bf16, whose sums depend on the machine.
            tolerance = 1e-6 if name == "vec" else 1e-3
            expected = golden[f"{name}.after{step}"]
            torch.testing.assert_close(parameter.detach(), expected, rtol=0, atol=tolerance)
        step += 1
    assert step >= 3


def test_orthogonalized_singular_values_are_near_one() -> None:
    torch.manual_seed(0)
    for shape in ((16, 64), (64, 16)):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_only_matrices_decay_if_asked() -> None:
    module = nn.Linear(3, 4)
    optim = OptimConfig(lr=0.1, weight_decay=0.5, decay="matrices")
    optimizer = build_optimizer(module, optim)
    bias, weight = module.bias.detach().clone(), module.weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(module.bias, bias)
    torch.testing.assert_close(module.weight.detach(), weight * (1 - 0.1 * 0.5))


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ({"warmup_steps": 4}, {0: 0.25, 3: 1.0, 50: 1.0, 99: 1.0}),
        ({"schedule": "cosine", "warmup_steps": 0}, {0: 1.0, 50: 0.5, 100: 0.0}),
        ({"schedule": "cosine", "final_lr_ratio": 0.1}, {0: 1.0, 50: 0.55, 100: 0.1}),
        ({"schedule": "wsd", "decay_ratio": 0.2}, {0: 1.0, 79: 1.0, 80: 1.0, 90: 0.5, 100: 0.0}),
        ({"schedule": "wsd", "warmup_steps": 2, "final_lr_ratio": 0.5}, {0: 0.5, 90: 0.75}),
    ],
)
def test_schedules(optim: dict, expected: dict[int, float]) -> None:
    config = OptimConfig(lr=1.0, **optim)
    for update, factor in expected.items():
        assert lr_factor(config, update, 100) == pytest.approx(factor)


@pytest.mark.parametrize(("rule", "ratio"), [("linear", 4.0), ("sqrt", 2.0)])
def test_learning_rates_follow_the_batch(rule: str, ratio: float) -> None:
    optim = OptimConfig.model_validate({"lr": 1e-4, "lr_scaling": rule, "lr_batch_size": 256})
    assert optim.for_batch(1024).lr == pytest.approx(ratio * 1e-4)
    assert optim.for_batch(256).lr == pytest.approx(1e-4)
    assert OptimConfig(lr=1e-4).for_batch(1024).lr == 1e-4


@pytest.mark.parametrize("half", [{"lr_scaling": "sqrt"}, {"lr_batch_size": 256}])
def test_a_scaling_rule_needs_its_batch(half: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="belong together"):
        OptimConfig.model_validate({"lr": 1e-4, **half})
