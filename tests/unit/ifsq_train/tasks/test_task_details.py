"""What the tasks hand to networks and losses: labels, group weights, modes."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.assembly.task import build_task
from ifsq_train.config import AutoregressiveTaskConfig, FlowConfig, TokenizerTaskConfig
from ifsq_train.config.tasks import PerceptualConfig
from ifsq_train.data.batch import Batch
from ifsq_train.losses.flow_matching import PATHS
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import VARIABLE
from ifsq_train.randomness import BatchRandom
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.diffusion import draw_times
from ifsq_train.tasks.frozen import ImageEncoder, TokenInputs
from ifsq_train.tasks.generator import labels_with_dropout
from ifsq_train.tasks.tokenizer_gan import TokenizerTask
from tests.support.exact_resume import moving_recipe


class NoAutocast:
    def autocast(self) -> Any:
        return nullcontext()


def info(step: int = 0, count: int = 4) -> StepInfo:
    return StepInfo(step, BatchRandom(0, step, np.arange(count)), 1.0, 1, NoAutocast())  # type: ignore[arg-type]


class Seen(nn.Module):
    """Keeps what a generator was asked for."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, []

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.calls.append((arguments, options))
        return self.inner(*arguments, **options)


def generator(codebooks: tuple[int, ...] = (5, 7)) -> LlamaGen:
    torch.manual_seed(0)
    model = LlamaGen(
        num_layers=1,
        num_heads=1,
        dim=8,
        codebook_sizes=codebooks,
        grid=(2, 2),
        num_classes=3,
        multiple_of=8,
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
    )
    with torch.no_grad():
        for head in model.output:  # type: ignore[union-attr]
            head.weight.normal_()
    return model


def config(**values: Any) -> AutoregressiveTaskConfig:
    model = {"size": "custom", "num_layers": 1, "num_heads": 1, "dim": 8, "num_classes": 3}
    model["class_dropout"] = values.pop("class_dropout", 0.0)
    return AutoregressiveTaskConfig.model_validate(
        {"kind": "autoregressive", "model": model, **values}
    )


def batch(labels: list[int]) -> Batch:
    tokens = torch.stack([torch.arange(4 * len(labels)).view(-1, 4) % size for size in (5, 7)], -1)
    return Batch(tokens, torch.tensor(labels), np.arange(len(labels)), None)


def test_unlabelled_samples_train_the_null_class() -> None:
    """And labelled ones their own: without dropout nothing else is the null class."""
    given = batch([-1, 0, 2, -1])
    found = labels_with_dropout(given, info(), 0.0)
    labels, dropped = found.classes, found.dropped
    assert dropped.tolist() == [True, False, False, True]
    assert labels.tolist()[1:3] == [0, 2]
    model = generator()
    seen = Seen(model)
    AutoregressiveTask(config(), model).loss("generator", {"generator": seen}, given, info())
    (arguments, options) = seen.calls[0]
    embedded = model.cls_embedding(arguments[1], options["drop_labels"])
    null = model.cls_embedding.embedding_table.weight[3]
    assert [torch.equal(row, null) for row in embedded] == [True, False, False, True]


def test_labels_are_dropped_as_often_as_said() -> None:
    """Within five standard deviations of a binomial: 4,000 samples, a chance of 0.1."""
    given = Batch(torch.zeros(4000, 4), torch.zeros(4000, dtype=torch.int64), np.arange(4000), None)
    dropped = labels_with_dropout(given, info(count=4000), 0.1).dropped
    assert abs(int(dropped.sum()) - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5
    again = labels_with_dropout(given, info(step=1, count=4000), 0.1).dropped
    assert not torch.equal(dropped, again)


def test_a_generator_is_trained_in_train_mode_with_its_recipe_s_dropout() -> None:
    """Also behind something that has put it into eval mode, such as drawing pictures."""
    model, given = generator(), batch([0, 1, 2, 0])
    for chance, expected in ((1.0, [True] * 4), (0.0, [False] * 4)):
        model.eval()
        seen = Seen(model)
        task = AutoregressiveTask(config(class_dropout=chance), model)
        task.loss("generator", {"generator": seen}, given, info())
        assert model.training
        assert seen.calls[0][1]["drop_labels"].tolist() == expected


@pytest.mark.parametrize("plain", ["0", "1"])
def test_group_weights_weigh_the_groups(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    model, given = generator(), batch([0, 1, 2, 0])

    def loss(weights: list[float] | None) -> float:
        values = {} if weights is None else {"group_weights": weights}
        task = AutoregressiveTask(config(**values), model)
        return float(task.loss("generator", {"generator": model}, given, info()).loss)

    first, second = loss([1.0, 0.0]), loss([0.0, 1.0])
    assert abs(first - second) > 1e-2
    assert loss([2.0, 0.5]) == pytest.approx(2.0 * first + 0.5 * second, rel=1e-5)
    assert loss(None) == pytest.approx(first + second, rel=1e-5)


def hooked(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks or module._backward_hooks)


def test_discriminator_steps_do_not_move_the_tokenizer(tmp_path: Path) -> None:
    """Its running moments stay; in its own steps they move."""
    recipe = moving_recipe("none", tmp_path, {"kind": "torch"})
    # A tokenizer's task looks at neither data nor ranks.
    task: Any = build_task(recipe, None, None)  # type: ignore[arg-type]
    networks = task.modules()
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    given = Batch(images, torch.zeros(4, dtype=torch.int64), np.arange(4), None)
    before = {n: v.clone() for n, v in networks["autoencoder"].state_dict().items()}
    moments = [name for name in before if "running" in name]
    assert moments
    networks["autoencoder"].train()
    task.loss("discriminator", networks, given, info())
    for name, value in networks["autoencoder"].state_dict().items():
        assert torch.equal(value, before[name]), name
    task.loss("autoencoder", networks, given, info())
    after = networks["autoencoder"].state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in moments)
    # What a step hooks into the network it takes out again: hooks of weeks would pile up.
    left = [name for name, module in networks["autoencoder"].named_modules() if hooked(module)]
    assert left == []


@pytest.mark.parametrize("mean", [-40.0, 40.0])
@pytest.mark.parametrize("path", list(PATHS))
def test_times_stay_where_the_path_has_a_velocity(path: str, mean: float) -> None:
    """Draws so far out that fp32 rounds them to the ends."""
    flow = FlowConfig.model_validate({"path": path, "time_mean": mean})
    times = draw_times(flow, BatchRandom(0, 0, np.arange(8)))
    margin = 1e-5 if path == "vp" else 0.0
    torch.testing.assert_close(times, torch.full((8,), 1.0 - margin if mean > 0 else margin))
    data, noise = torch.ones(8, 1, 1, 1), -torch.ones(8, 1, 1, 1)
    assert all(part.isfinite().all() for part in PATHS[path]().interpolate(data, noise, times))


def test_a_frozen_tokenizer_is_frozen_and_in_eval_mode(tmp_path: Path) -> None:
    recipe = moving_recipe("none", tmp_path, {"kind": "torch"})
    network = build_tokenizer(recipe.task.model).train()  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    tokens = TokenInputs(ImageEncoder(network))
    found = tokens(Batch(images, torch.zeros(2, dtype=torch.int64), np.arange(2), None))
    assert torch.equal(found.flatten(), network.encode(images).indices.flatten())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


class Distance(nn.Module):
    """A perceptual network that finds every two pictures equally unlike."""

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return torch.full((len(first), 1, 1, 1), 3.0) + 0.0 * (first - second).sum()


def test_the_perceptual_term_weighs_what_the_recipe_says(tmp_path: Path) -> None:
    recipe = moving_recipe("none", tmp_path, {"kind": "torch"})
    assert isinstance(recipe.task, TokenizerTaskConfig)
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    given = Batch(images, torch.zeros(2, dtype=torch.int64), np.arange(2), None)

    def loss(weight: float) -> float:
        changes = {"adversarial": None, "perceptual": PerceptualConfig(weight=weight)}
        torch.manual_seed(0)
        network = build_tokenizer(recipe.task.model)  # type: ignore[union-attr]
        config = recipe.task.model_copy(update=changes)
        task = TokenizerTask(config, network, None, Distance())  # type: ignore[arg-type]
        found = task.loss("autoencoder", task.modules(), given, info())
        return float(found.metrics["loss"])

    assert loss(1.0) - loss(0.0) == pytest.approx(3.0, abs=1e-4)
    assert loss(0.5) - loss(0.0) == pytest.approx(1.5, abs=1e-4)
