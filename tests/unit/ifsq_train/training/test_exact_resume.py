"""Stopped and taken up again through `train.run`, a run ends with the same bits.

Weights, optimizer moments, averages, buffers of networks whose state moves, counters and losses.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ifsq_train.distributed.context import InProcessContext
from tests.support.exact_resume import STEPS, run_and_resume
from tests.support.ranks import run_ranks
from tests.support.small_run import write_images

pytestmark = pytest.mark.heavy

ENGINES = [{"kind": "deepspeed", "zero_stage": stage} for stage in (0, 1, 2, 3)]


def check(found: dict[str, Any]) -> None:
    assert found["unequal"] == []
    assert found["missing"] == []
    assert found["counters"][0] == found["counters"][1]
    assert found["counters"][0]["steps"] == {"autoencoder": STEPS // 2, "discriminator": STEPS // 2}
    assert found["logged"][0] == found["logged"][1]
    assert [record["step"] for record in found["logged"][0]] == list(range(1, STEPS + 1))
    assert found["states"] == ["ema", "exp_avg", "exp_avg_sq", "master"]
    # What the comparison is worth: state that a run without it would not have had.
    for part in ("running_mean", "running_var"):
        for where, network in (
            ("moved", "live/autoencoder"),
            ("moved", "live/discriminator"),
            ("averaged", "ema/autoencoder"),
        ):
            assert [n for n in found[where] if n.startswith(network) and part in n], (where, part)


def test_torch(tmp_path: Path) -> None:
    data = write_images(tmp_path, 24)
    check(run_and_resume(data, tmp_path, {"kind": "torch"}, InProcessContext()))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ENGINES, ids=lambda s: f"zero{s['zero_stage']}")
def test_deepspeed(tmp_path: Path, strategy: dict[str, Any]) -> None:
    data = write_images(tmp_path, 24)
    (found,) = run_ranks(1, "exact_resume", data=data, output=str(tmp_path), strategy=strategy)
    check(found)
