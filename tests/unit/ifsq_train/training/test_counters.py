"""What is counted "in a row" starts anew, and every network of a step is looked at."""

from __future__ import annotations

import pytest
import torch

from data_pipelines.errors import UserError
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
