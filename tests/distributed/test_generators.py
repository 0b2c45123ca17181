"""A generator's run gives the same numbers on any number of ranks and at any ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.config import TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.train import run
from tests.support.precompute_parts import configure, make_parts
from tests.support.ranks import run_ranks


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("generators")
    parts = make_parts(folder, levels=5)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    return {**parts, "tokens": str(folder / "tokens")}


def recipe(parts: dict[str, Any], output: Path, kind: str, engine: Any) -> dict[str, Any]:
    """Three steps of a small generator."""
    model = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}
    off = ("token_dropout", "residual_dropout", "feed_forward_dropout")
    if kind == "autoregressive":  # dropout inside layers is drawn per rank
        model |= dict.fromkeys(off, 0.0)
    return {
        "kind": "train",
        "name": kind,
        "output": str(output),
        "steps": 3,
        "data": {"kind": "tokens", "url": parts["tokens"], "global_batch_size": 4},
        "task": {"kind": kind, "model": model},
        "optim": {"generator": {"lr": 1e-3}},
        "strategy": engine,
        "ema_decay": 0.9,
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "engine"),
    [
        ("autoregressive", {"kind": "deepspeed", "zero_stage": 3}),
        ("diffusion", {"kind": "torch"}),
        ("diffusion", {"kind": "deepspeed", "zero_stage": 1, "micro_batch_size": 1}),
    ],
)
def test_two_ranks_take_the_steps_of_one(
    parts: dict[str, Any], tmp_path: Path, kind: str, engine: dict[str, Any]
) -> None:
    config = validate_recipe(recipe(parts, tmp_path / "one", kind, {"kind": "torch"}), "test")
    assert isinstance(config, TrainConfig)
    alone = run(config, InProcessContext(device=torch.device("cpu")))
    values = recipe(parts, tmp_path / "two", kind, engine)
    shared = run_ranks(2, "train_recipe", values=values)[0]
    assert shared["world_size"] == 2
    assert shared["final_loss"] == pytest.approx(alone["final_loss"], rel=2e-6)
    # The released head starts at zero: the trunk's first gradients are rounding, which Adam
    # scales up.
    norms = [result["final"]["grad_norm/generator"] for result in (shared, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
