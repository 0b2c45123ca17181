"""A generator's run gives the same numbers on any number of ranks and at any ZeRO stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from precompute_parts import configure, make_parts
from ranks import run_ranks

from ifsq_train.precompute import run_precompute_local

ENGINES: list[tuple[int, dict[str, Any]]] = [
    (2, {"kind": "torch"}),
    (2, {"kind": "deepspeed", "zero_stage": 1}),
    (1, {"kind": "deepspeed", "zero_stage": 3}),
    (2, {"kind": "deepspeed", "zero_stage": 3, "micro_batch_size": 1}),
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("generators")
    parts = make_parts(folder)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    return {**parts, "tokens": str(folder / "tokens")}


def final(parts: dict[str, Any], output: Path, kind: str, world: int, engine: Any) -> list[float]:
    """Loss of each of the last steps."""
    model = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}
    off = ("token_dropout", "residual_dropout", "feed_forward_dropout")
    if kind == "autoregressive":  # dropout inside layers is drawn per rank
        model |= dict.fromkeys(off, 0.0)
    values = {
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
    result = run_ranks(world, "train_recipe", values=values)[0]
    return [result["final_loss"], result["final"]["grad_norm/generator"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_losses_do_not_depend_on_the_engine(
    parts: dict[str, Any], tmp_path: Path, kind: str
) -> None:
    expected = final(parts, tmp_path / "one", kind, 1, {"kind": "torch"})
    for index, (world, engine) in enumerate(ENGINES):
        found = final(parts, tmp_path / str(index), kind, world, engine)
        assert found == pytest.approx(expected, rel=2e-6), engine
