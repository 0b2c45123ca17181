"""A training on Ray whose worker is killed comes out as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.support.training_process import Driver, compare, prepare, wait_for_step, write_recipe

LIMIT = 240.0
STEPS = 60


def kill_a_worker(folder: Path) -> None:
    """SIGKILL one of the training's own workers, found by the log each keeps open."""
    logs = {str(path) for path in (folder / "logs").glob("rank-*.log")}
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            open_files = {str(link.readlink()) for link in (process / "fd").iterdir()}
        except OSError:
            continue
        if logs & open_files:
            holders.append(int(process.name))
    assert holders, "no worker has its log open"
    os.kill(random.Random(0).choice(holders), signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_worker_costs_time_only(tmp_path: Path) -> None:
    """Two workers, ZeRO 2, SIGKILL after step 25; the losses are those of one that was let be."""
    parts = prepare(tmp_path)
    for name in ("killed", "undisturbed"):
        recipe = write_recipe(parts, tmp_path, tmp_path / name, STEPS)
        driver = Driver(recipe, None, tmp_path / f"{name}.log", workers=2, min_workers=1)
        try:
            if name == "killed":
                wait_for_step(tmp_path / name, driver, 25, LIMIT)
                kill_a_worker(tmp_path / name)
            code = driver.process.wait(LIMIT)
        finally:
            driver.process.kill()
        assert code == 0, (tmp_path / f"{name}.log").read_text()[-3000:]
    worst, whole = compare(tmp_path / "undisturbed", tmp_path / "killed")
    assert whole
    assert worst < 1e-6
    starts = (tmp_path / "killed" / "starts.jsonl").read_text().splitlines()
    assert len(starts) >= 2
    assert json.loads(starts[-1])["first_step"] >= 20, "more than the last checkpoint was lost"
