"""What goes wrong while training: hanging ranks, NaN, full disks, preemption, two owners."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipelines.errors import UserError, as_user_error
from ifsq_train.checkpoint import writer as checkpoint_writer
from ifsq_train.checkpoint.fence import Fence, FencedOff
from ifsq_train.checkpoint.format import Piece, list_steps, step_folder
from ifsq_train.checkpoint.reader import Checkpoint, newest_checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.strategy.base import StepStats
from ifsq_train.training.failure import FailureLog
from ifsq_train.training.nonfinite import MAX_IN_A_ROW, NonFiniteGuard
from ifsq_train.training.watchdog import EXIT_CODE, Place, blame
from tests.support.repository import REPOSITORY

VALUES = torch.arange(24, dtype=torch.float32)


def writer(folder: Path, **options: object) -> CheckpointWriter:
    settings = {"rank": 0, "world_size": 1, "attempt": "a", "retention": Retention(2)} | options
    return CheckpointWriter(folder, **settings)  # type: ignore[arg-type]


def pieces(scale: float = 1.0) -> list[Piece]:
    return [Piece("net", "w", "master", (24,), 0, VALUES * scale)]


# ---------------------------------------------------------------- storage


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Writing fails half-way while `on`, as on a full disk: real bytes, then ENOSPC."""
    state = {"on": False}
    real = checkpoint_writer.write_atomically

    def write(path: Path, data: Any) -> None:
        if state["on"]:
            path.with_name(f".{path.name}.tmp").write_bytes(b"half")
            raise OSError(28, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(checkpoint_writer, "write_atomically", write)
    return state


def test_a_failed_save_leaves_the_last_one_and_the_run_goes_on(
    tmp_path: Path, refusing: dict[str, bool], caplog: pytest.LogCaptureFixture
) -> None:
    saver = writer(tmp_path, max_failed_saves=2)
    saver.save(1, pieces(), {}, {})
    saver.settle()
    refusing["on"] = True
    saver.save(2, pieces(2.0), {}, {})
    with caplog.at_level(logging.ERROR):
        saver.settle()
    assert "step 2 could not be saved" in caplog.text
    assert "No space left" in caplog.text
    found = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.step == 1
    refusing["on"] = False
    saver.save(3, pieces(3.0), {}, {})
    saver.close()
    assert list_steps(tmp_path) == [1, 3]


def test_too_many_failed_saves_end_the_run_with_the_reason(
    tmp_path: Path, refusing: dict[str, bool]
) -> None:
    saver = writer(tmp_path, max_failed_saves=1)
    refusing["on"] = True
    saver.save(1, pieces(), {}, {})
    saver.save(2, pieces(), {}, {})
    with pytest.raises(OSError, match=r"step 2 could not be saved.*No space left") as caught:
        saver.settle()
    assert "earlier ones are intact; free some space" in str(as_user_error(caught.value))
    saver.abort()
    assert list_steps(tmp_path) == []


def test_another_rank_that_cannot_write_is_not_waited_for(tmp_path: Path) -> None:
    """Rank 1's part never comes; the ranks agree that it failed, and rank 0 lets go at once."""
    saver = writer(tmp_path, world_size=2, max_failed_saves=1, agree=lambda _flag: True)
    saver.save(1, pieces(), {}, {})
    began = time.monotonic()
    saver.settle()
    assert time.monotonic() - began < 2
    assert list_steps(tmp_path) == []
    saver.abort()


def test_the_later_start_owns_the_folder(tmp_path: Path) -> None:
    first, second = Fence(tmp_path, "first"), Fence(tmp_path, "second")
    tmp_path.mkdir(exist_ok=True)
    first.take()
    old = writer(tmp_path, attempt="first", fence=first)
    old.save(1, pieces(), {}, {})
    old.settle()
    second.take()
    old.save(2, pieces(), {}, {})
    with pytest.raises(FencedOff, match=f"process {os.getpid()} on"):
        old.settle()
    old.abort()
    assert list_steps(tmp_path) == [1]


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(2), {90, 100}),
        (Retention(1, keep_every_steps=40), {40, 80, 100}),
        (Retention(1, metric="loss", keep_best=2), {30, 100, 20}),
        (Retention(1, metric="loss", lowest=False, keep_best=1), {100, 10}),
    ],
)
def test_which_checkpoints_are_kept(retention: Retention, kept: set[int]) -> None:
    steps = list(range(10, 101, 10))
    losses = {10: 9.0, 20: 2.0, 30: 1.0, 50: 3.0, 100: 4.0}
    assert retention.kept(steps, losses) == kept


def test_the_best_is_still_there_after_a_restart(tmp_path: Path) -> None:
    retention = Retention(1, metric="loss", keep_best=1)
    for step, loss in ((1, 5.0), (2, 1.0), (3, 4.0), (4, float("nan")), (5, 3.0)):
        saver = writer(tmp_path, retention=retention)
        state = TrainState("plan", step, step, {"loss": loss}).to_dict()
        saver.save(step, pieces(), {}, {"train_state": state})
        saver.close()
    assert list_steps(tmp_path) == [2, 5]
    assert Checkpoint(step_folder(tmp_path, 2)).step == 2


# ---------------------------------------------------------------- NaN


def test_policy_stop_names_step_and_network() -> None:
    guard = NonFiniteGuard("stop")
    assert not guard.note(6, {"generator": StepStats(1.0, 0.1)})
    with pytest.raises(UserError, match=r"step 7: a gradient of 'generator' is NaN"):
        guard.note(7, {"generator": StepStats(float("nan"), 0.1, applied=False)})


def test_norms_on_a_device_are_looked_at_before_logging_and_saving() -> None:
    guard = NonFiniteGuard("rollback")
    for step, norm in enumerate((1.0, float("inf"), 2.0)):
        assert not guard.note(step, {"generator": StepStats(torch.tensor(norm), 0.1)})
    assert guard.check()
    assert not guard.check()


def test_skipping_gives_up_when_nothing_else_comes() -> None:
    guard = NonFiniteGuard("skip")
    bad = {"generator": StepStats(float("nan"), 0.1, applied=False)}
    for step in range(MAX_IN_A_ROW):
        assert not guard.note(step, bad)
    assert guard.skipped == MAX_IN_A_ROW
    with pytest.raises(UserError, match="in a row"):
        guard.note(MAX_IN_A_ROW, bad)


# ---------------------------------------------------------------- who failed, who hangs


def test_the_first_failure_of_the_last_start_is_kept(tmp_path: Path) -> None:
    log = FailureLog(tmp_path, "launch")
    log.record("one", 1, ValueError("old"))
    time.sleep(0.01)
    log.record("two", 1, ValueError("cause"))
    log.record("two", 0, RuntimeError("connection closed by peer"))
    failure = log.last()
    assert failure is not None
    assert (failure.rank, failure.message) == (1, "ValueError('cause')")
    assert log.unmendable() is None
    log.clear()
    assert log.last() is None


def place(rank: int, step: int, phase: str, waits: bool) -> Place:
    return Place(rank, step, phase, waits, "")


@pytest.mark.parametrize(
    ("places", "world", "expected"),
    [
        ([place(0, 7, "compute", True), place(1, 7, "data", False)], 2, "rank 1 hangs at step 7"),
        ([place(0, 7, "compute", True), place(1, 7, "compute", False)], 2, "rank 1 hangs"),
        ([place(0, 7, "compute", True)], 3, "rank 1, 2 did not answer"),
        ([place(r, 7, "compute", True) for r in (0, 1)], 2, "all ranks stand at step 7"),
    ],
)
def test_the_rank_behind_the_others_is_named(
    places: list[Place], world: int, expected: str
) -> None:
    assert expected in blame(places, world, 5.0)


def test_a_hanging_step_ends_with_its_stack(tmp_path: Path) -> None:
    program = """
        import sys, time
        from pathlib import Path
        from ifsq_train.training.watchdog import Watchdog

        def waits_for_nobody():
            time.sleep(60)

        folder = Path(sys.argv[1])
        told = lambda message, stack: (folder / "told").write_text(message + stack)
        with Watchdog(folder, attempt="a", rank=0, world_size=1, timeout_seconds=0.5,
                      on_hang=told) as dog:
            dog.beat(3, "compute")
            waits_for_nobody()
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == EXIT_CODE
    assert "all ranks stand at step 3 in 'compute'" in ended.stderr
    assert "waits_for_nobody" in ended.stderr
    assert "waits_for_nobody" in (tmp_path / "told").read_text()


# ---------------------------------------------------------------- leaving

SMALL_RUN = """
    import sys
    import numpy as np, torch
    from tests.support.trace_runs import RecordedData, _tokenizer_task, recipe
    from ifsq_train import train
    from ifsq_train.distributed.interruption import Interrupted
    from ifsq_train.distributed.context import InProcessContext

    output, steps, spoiled, changes = sys.argv[1], int(sys.argv[2]), sys.argv[3], eval(sys.argv[4])
    config = recipe(
        output, {{"kind": "torch"}}, steps=steps, batch=2,
        data={{"kind": "images", "view": {{"kind": "raw", "image_size": 8}}}},
        task={{"kind": "tokenizer", "adversarial": None, "model": {{
            "quantizer": {{"kind": "ae", "num_channels": 2}}, "channel_multipliers": [1],
            "base_channels": 8, "num_res_blocks": 1, "norm_groups": 4}}}},
        optim={{"autoencoder": {{"lr": 1e-3}}}}, ema_decay=0.9, **changes,
    )
    images = torch.rand(64, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    if spoiled != "-":
        images[int(spoiled)] = float("nan")
    data = RecordedData(images, torch.zeros(64, 2, dtype=torch.int64))
    inner = data.load
    data.load = lambda step, rank, world: inner(step % 64, rank, world)
    train.open_train_data = lambda *a, **k: data
    train.build_task = lambda *a: _tokenizer_task(config)
    try:
        train.run(config, InProcessContext(device=torch.device("cpu")))
    except Interrupted as left:
        print("left:", left)
        sys.exit(143)
"""


def start_run(
    output: Path, steps: int, spoiled: str = "-", **changes: object
) -> subprocess.Popen[str]:
    program = textwrap.dedent(SMALL_RUN).format()
    return subprocess.Popen(
        [sys.executable, "-c", program, str(output), str(steps), spoiled, repr(changes)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def losses(output: Path) -> list[float]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
def test_sigterm_saves_that_step_and_the_next_start_goes_on(tmp_path: Path) -> None:
    process = start_run(tmp_path / "a", 4000)
    deadline = time.monotonic() + 300
    log = tmp_path / "a" / "metrics.jsonl"
    while not (log.is_file() and log.read_text().count("\n") > 1):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1][-2000:]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 143, errors[-2000:]
    found = newest_checkpoint(tmp_path / "a" / "checkpoints")
    assert found is not None
    assert f"stop at step {found.step}" in output
    assert len(losses(tmp_path / "a")) == found.step
    last = found.step + 5
    assert start_run(tmp_path / "a", last).wait(300) == 0
    assert start_run(tmp_path / "b", last).wait(300) == 0
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_a_spoiled_batch(tmp_path: Path, policy: str) -> None:
    """Batch 5 is NaN; checkpoints of steps 2 and 4 are clean and stay so."""
    process = start_run(
        tmp_path, 8, "5", on_nonfinite=policy, dry_run=False, checkpoint={"every_steps": 2}
    )
    _, errors = process.communicate(timeout=120)
    found = newest_checkpoint(tmp_path / "checkpoints")
    assert found is not None
    for value in found.weights("autoencoder").values():
        assert value.isfinite().all()
    if policy == "stop":
        assert "step 5: a gradient of 'autoencoder' is NaN" in errors
        assert found.step == 4
        return
    assert process.returncode == 0, errors[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["skipped_updates"] == 1
    updates = {"skip": 7, "rollback": 6}[policy]
    assert found.header["optimizer_steps"] == {"autoencoder": updates}
