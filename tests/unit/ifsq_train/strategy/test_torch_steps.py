"""What an update does: clipped gradients, counted updates, its learning rate, NaN left out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.strategy.torch import TorchStrategy


def prepared(**optim: object) -> tuple[nn.Module, TorchStrategy]:
    module = nn.Linear(3, 2, bias=False)
    context = InProcessContext(device=torch.device("cpu"))
    strategy = TorchStrategy(StrategyConfig(kind="torch"), context)
    settings = OptimConfig.model_validate({"lr": 0.1, "betas": [0.9, 0.99], **optim})
    strategy.prepare({"net": module}, {"net": settings}, 10)
    return module, strategy


def with_gradient(module: nn.Module, value: float) -> None:
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, value)


@pytest.mark.parametrize(("limit", "kept"), [(0.5, 0.5), (None, 6.0**0.5), (100.0, 6.0**0.5)])
def test_gradients_are_clipped_to_the_limit(limit: float | None, kept: float) -> None:
    """Told by the first moment: Adam's update would be the same."""
    module, strategy = prepared(max_grad_norm=limit)
    with_gradient(module, 1.0)
    stats = strategy.step("net")
    assert stats.grad_norm == pytest.approx(6.0**0.5)
    (piece,) = strategy.owned_fragments("net")
    assert float(piece.states["exp_avg"].norm()) == pytest.approx(0.1 * kept, rel=1e-5)
    assert next(module.parameters()).grad is None


def test_updates_are_counted_and_decide_the_learning_rate() -> None:
    module, strategy = prepared(warmup_steps=4, schedule="constant")
    rates = []
    for number in range(3):
        assert strategy.optimizer_steps("net") == number
        with_gradient(module, 1.0)
        rates.append(strategy.step("net").lr)
    assert rates == pytest.approx([0.025, 0.05, 0.075])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_left_out_changes_nothing(value: float) -> None:
    module, strategy = prepared()
    before = [parameter.detach().clone() for parameter in module.parameters()]
    with_gradient(module, value)
    assert not strategy.step("net").applied
    assert strategy.optimizer_steps("net") == 0
    for parameter, was in zip(module.parameters(), before, strict=True):
        assert torch.equal(parameter, was)
        assert parameter.grad is None
