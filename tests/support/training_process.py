"""`ifsq train` as a process that a test may kill, and the comparison of what two runs logged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.precompute.job import run_precompute_local
from tests.support.precompute_parts import configure, make_parts
from tests.support.repository import REPOSITORY

STRATEGIES = {"zero2": {"kind": "deepspeed", "zero_stage": 2}, "torch": {"kind": "torch"}}


def steps_logged(folder: Path) -> int:
    """Last step in the run's log."""
    records = read_jsonl(folder / "metrics.jsonl")
    return int(records[-1]["step"]) if records else 0


class Driver:
    """`ifsq train` as a process; on a local Ray where no address is given."""

    def __init__(
        self, recipe: Path, address: str | None, log: Path, *, workers: int, min_workers: int
    ) -> None:
        self._command = [sys.executable, "-m", "launchers.cli", "train", str(recipe)]
        self._command += ["--workers", str(workers), "--min-workers", str(min_workers)]
        self._command += ["--max-failures", "1000"]
        if address is not None:
            self._command += ["--address", address]
        self._log = log
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, env=environment, stdout=log, stderr=log, cwd=REPOSITORY
            )

    def kill(self) -> None:
        """SIGKILL, then the same command again."""
        self.process.kill()
        self.process.wait()
        self.process = self._start()


def write_recipe(
    parts: dict[str, Any], folder: Path, output: Path, steps: int, strategy: str = "zero2"
) -> Path:
    """A small LlamaGen without dropout, so that the world size does not matter."""
    model = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}
    off = ("token_dropout", "residual_dropout", "feed_forward_dropout")
    recipe = {
        "kind": "train",
        "name": "killed",
        "output": str(output),
        "steps": steps,
        "log_every_steps": 1,
        "data": {"kind": "tokens", "url": parts["tokens"], "global_batch_size": 8},
        "task": {"kind": "autoregressive", "model": model | dict.fromkeys(off, 0.0)},
        "optim": {"generator": {"lr": 1e-3}},
        "strategy": STRATEGIES[strategy],
        "checkpoint": {"every_steps": 10},
        "ema_decay": 0.9,
    }
    path = folder / f"{output.name}.yaml"
    path.write_text(json.dumps(recipe))
    return path


def prepare(folder: Path) -> dict[str, Any]:
    """A token dataset of a few images."""
    parts = make_parts(folder)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    return {**parts, "tokens": str(folder / "tokens")}


def wait_for_step(output: Path, driver: Driver, step: int, limit: float) -> None:
    """Until the log has the step."""
    deadline = time.monotonic() + limit
    while steps_logged(output) < step:
        if driver.process.poll() is not None:
            raise SystemExit(f"the driver ended by itself with {driver.process.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"no step {step} within {limit:.0f} s")
        time.sleep(0.05)


def compare(reference: Path, disturbed: Path) -> tuple[float, bool]:
    """Largest relative difference of losses, and whether the steps are 1, 2, 3, ... once each."""
    a, b = (read_jsonl(folder / "metrics.jsonl") for folder in (reference, disturbed))
    whole = [r["step"] for r in b] == [r["step"] for r in a] == list(range(1, len(a) + 1))
    by_step = {record["step"]: record["loss"] for record in b}
    worst = max(abs(by_step[r["step"]] - r["loss"]) / abs(r["loss"]) for r in a)
    return worst, whole
