"""A training on Ray loses a worker, or is told that its node will be taken away."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from ifsq_train.config import TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.train import run
from tests.support.training_process import Driver, compare, prepare, wait_for_step, write_recipe

LIMIT = 240.0
STEPS = 30


def workers(folder: Path) -> list[int]:
    """The training's own workers, found by the log each keeps open."""
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
    return holders


def announce_preemption(folder: Path) -> None:
    """Tell the Ray of a training, as an autoscaler does, that its node goes in five minutes."""
    raylet = psutil.Process(workers(folder)[0]).parent()
    assert raylet is not None
    options: dict[str, str] = {}
    for word in raylet.cmdline():
        name, _, value = word.partition("=")
        options[name] = value
    command = [
        str(Path(sys.executable).parent / "ray"), "drain-node",
        f"--address={options['--gcs-address']}", f"--node-id={options['--node_id']}",
        "--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot",
        "--deadline-remaining-seconds=300",
    ]  # fmt: skip
    # So that Ray asks at the loopback address, where the session listens.
    environment = raylet.environ() | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
        os.kill(random.Random(0).choice(workers(tmp_path / "killed")), signal.SIGKILL)
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


@pytest.mark.slow
def test_a_preempted_node_saves_first(tmp_path: Path) -> None:
    """The run reads Ray's preemption context, a private attribute: this fails if Ray moves it.

    It then waits for another node; a second SIGTERM ends that.
    """
    output = tmp_path / "preempted"
    recipe = write_recipe(prepare(tmp_path), tmp_path, output, 1_000_000)
    values = json.loads(recipe.read_text()) | {"checkpoint": {"every_steps": 1_000_000}}
    recipe.write_text(json.dumps(values))
    driver = Driver(recipe, None, tmp_path / "preempted.log", workers=1, min_workers=1)
    try:
        wait_for_step(output, driver, 5, LIMIT)
        assert not list(output.glob("checkpoints/*/checkpoint.json"))
        announce_preemption(output)
        deadline = time.monotonic() + LIMIT
        while not list(output.glob("checkpoints/*/checkpoint.json")):
            assert driver.process.poll() is None, (tmp_path / "preempted.log").read_text()[-3000:]
            assert time.monotonic() < deadline, "the announced end of the node did nothing"
            time.sleep(0.2)
        while driver.process.poll() is None:  # no worker is there to hear the first
            assert time.monotonic() < deadline, "a training without workers does not end"
            driver.process.terminate()
            time.sleep(1)
        assert driver.process.returncode == -signal.SIGTERM
        assert not list(output.glob(".stop-*"))
    finally:
        driver.process.kill()
        driver.process.wait()
