"""A training on Ray whose worker is killed comes out as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest

from ifsq_train.config import TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.train import run
from tests.support.training_process import Driver, compare, prepare, wait_for_step, write_recipe

LIMIT = 240.0
STEPS = 30


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
    """Two workers, ZeRO 2, SIGKILL after step 12; the losses are those of one that was let be.

    The one that was let be has a single worker, in this process: neither may make a difference.
    """
    parts = prepare(tmp_path)
    recipe = write_recipe(parts, tmp_path, tmp_path / "undisturbed", STEPS)
    config = load_recipe(str(recipe))
    assert isinstance(config, TrainConfig)
    run(config, InProcessContext())
    recipe = write_recipe(parts, tmp_path, tmp_path / "killed", STEPS)
    driver = Driver(recipe, None, tmp_path / "killed.log", workers=2, min_workers=1)
    try:
        wait_for_step(tmp_path / "killed", driver, 12, LIMIT)
        kill_a_worker(tmp_path / "killed")
        code = driver.process.wait(LIMIT)
    finally:
        driver.process.kill()
    assert code == 0, (tmp_path / "killed.log").read_text()[-3000:]
    worst, whole = compare(tmp_path / "undisturbed", tmp_path / "killed")
    assert whole
    assert worst < 1e-6
    starts = (tmp_path / "killed" / "starts.jsonl").read_text().splitlines()
    assert len(starts) >= 2
    assert json.loads(starts[-1])["first_step"] >= 10, "more than the last checkpoint was lost"
