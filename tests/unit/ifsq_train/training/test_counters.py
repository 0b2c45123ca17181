"""What is counted "in a row" starts anew, and every network of a step is looked at."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_pipelines.errors import UserError
from ifsq_train.checkpoint import writer as checkpoint_writer
from ifsq_train.checkpoint.format import Piece
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.strategy.base import StepStats
from ifsq_train.training.nonfinite import MAX_IN_A_ROW, NonFiniteGuard

GOOD, BAD = StepStats(1.0, 1e-3), StepStats(float("nan"), 1e-3, applied=False)


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_one_spoiled_network_of_two_is_enough(order: tuple[str, str]) -> None:
    """Whichever comes first; the other's good update hides nothing."""
    stats = {name: BAD if name == "a" else GOOD for name in order}
    with pytest.raises(UserError, match="step 3: a gradient of 'a' is NaN or infinite; saved"):
        NonFiniteGuard("stop").note(3, stats)
    guard = NonFiniteGuard("rollback")
    assert guard.note(3, stats)
    assert guard.skipped == 1


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_one_spoiled_norm_on_the_device_is_enough(order: tuple[str, str]) -> None:
    values = {"a": float("inf"), "b": 1.0}
    guard = NonFiniteGuard("stop")
    assert not guard.note(1, {n: StepStats(torch.tensor(values[n]), 1e-3) for n in order})
    with pytest.raises(UserError, match="a gradient of 'a'"):
        guard.check()


def test_a_good_step_between_ends_the_row() -> None:
    """Far more faults than allowed in a row, but never in a row."""
    guard = NonFiniteGuard("skip")
    for step in range(3 * MAX_IN_A_ROW):
        guard.note(2 * step, {"net": BAD})
        guard.note(2 * step + 1, {"net": GOOD})
    assert guard.skipped == 3 * MAX_IN_A_ROW


def test_the_row_is_as_long_as_said() -> None:
    guard = NonFiniteGuard("skip")
    for step in range(MAX_IN_A_ROW):
        guard.note(step, {"net": BAD})
    with pytest.raises(UserError, match=f"{MAX_IN_A_ROW + 1}th time in a row"):
        guard.note(MAX_IN_A_ROW, {"net": BAD})


@pytest.mark.parametrize("between", [True, False])
def test_norms_on_the_device_are_counted_in_a_row(between: bool) -> None:
    """They are looked at every few steps only; every look at good ones ends the row."""
    guard = NonFiniteGuard("rollback")

    def looks(norm: float) -> bool:
        for step in range(3):
            assert not guard.note(step, {"net": StepStats(torch.tensor(norm), 1e-3)})
        return guard.check()

    for _ in range(MAX_IN_A_ROW):
        assert looks(float("nan"))
        assert not (between and looks(1.0))
    if between:
        assert looks(float("nan"))
        return
    with pytest.raises(UserError, match=f"{MAX_IN_A_ROW + 1}th time in a row"):
        looks(float("nan"))


def test_a_save_between_ends_the_row_of_failed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = checkpoint_writer.write_atomically, {"disk": False}

    def write(path: Path, data: bytes) -> None:
        if full["disk"]:
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(checkpoint_writer, "write_atomically", write)
    writer = checkpoint_writer.CheckpointWriter(
        tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(1), max_failed_saves=2
    )
    piece = Piece("net", "w", "master", (1,), 0, torch.zeros(1))
    for step, fails in enumerate([True, True, False] * 3, start=1):
        full["disk"] = fails
        writer.save(step, [piece], {}, {})
        writer.settle()
    full["disk"] = True
    for step in (10, 11):
        writer.save(step, [piece], {}, {})
    writer.settle()
    writer.save(12, [piece], {}, {})
    with pytest.raises(OSError, match="step 12 could not be saved"):
        writer.settle()
    writer.abort()
