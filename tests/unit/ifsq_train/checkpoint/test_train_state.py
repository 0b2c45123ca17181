"""Progress of a run comes back number by number, and only into the run it belongs to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from data_pipelines.errors import UserError
from ifsq_train.checkpoint.train_state import STATE_VERSION, TrainState

SAVED = TrainState("order", 7, 448, {"loss": 0.25, "lr/net": 1e-3})


def test_every_number_comes_back() -> None:
    fresh = TrainState("order")
    fresh.restore(SAVED.to_dict())
    assert fresh == SAVED
    fresh.last_record["loss"] = 1.0
    assert SAVED.last_record["loss"] == 0.25


@pytest.mark.parametrize("version", [None, 0, STATE_VERSION + 1, str(STATE_VERSION)])
def test_another_version_is_refused(version: Any) -> None:
    with pytest.raises(UserError, match=f"has version {version}, this program reads 1"):
        TrainState("order").restore(SAVED.to_dict() | {"version": version})


def test_another_order_is_refused_unless_it_was_allowed() -> None:
    other = replace(SAVED, plan_digest="other")
    with pytest.raises(UserError, match=r"another order of the data \(seed: 0 -> 1; x\)"):
        TrainState("order").restore(other.to_dict(), ["seed: 0 -> 1", "x"])
    with pytest.raises(UserError, match="dataset, global_batch_size, seed or shuffle_window"):
        TrainState("order").restore(other.to_dict())
    fresh = TrainState("order")
    fresh.restore(other.to_dict(), other_order=True)
    assert fresh == replace(SAVED, plan_digest="order")
