"""What a save costs a run, and one run of the real command."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import CheckpointConfig, StrategyConfig
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.strategy.torch import TorchStrategy
from ifsq_train.training.saved_state import collect_state
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.steps import llamagen_task

ROOT = Path(__file__).resolve().parents[3]


def measure_save(bench: Bench) -> None:
    """Seconds a step waits for a save of LlamaGen-L, and until it is durable."""
    task, batch, optim = llamagen_task(bench, "small" if bench.tiny else "L", 2)
    settings = StrategyConfig(kind="torch", precision="bf16", compile=False)
    strategy = TorchStrategy(settings, InProcessContext(device=bench.device))
    strategy.prepare(task.modules(), {GENERATOR: optim}, 1000)
    del batch
    with tempfile.TemporaryDirectory() as folder:
        writer = CheckpointWriter(
            Path(folder),
            rank=0,
            world_size=1,
            attempt="a",
            retention=Retention.of(CheckpointConfig()),
        )
        for turn in range(3):
            bench.wait()
            began = time.perf_counter()
            pieces, buffers = collect_state(strategy, [GENERATOR], {})
            writer.save(turn + 1, pieces, buffers, {})
            stall = time.perf_counter() - began
            writer.settle()
            durable = time.perf_counter() - began
            bench.emit(f"save {turn + 1}", stall_s=round(stall, 3), durable_s=round(durable, 3))


def real_training(bench: Bench) -> None:
    """`ifsq train` from data on disk to a result, in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        made, data, run = (Path(folder) / name for name in ("images", "data", "run"))
        from tests.benchmarks.gpu.decode import make_images

        make_images(made, bench.size(512, 64))
        program = [sys.executable, "-m", "launchers.cli"]
        steps = bench.size(50, 2)
        commands = [
            [*program, "data", "pack", str(made), str(data)],
            [*program, "train", "demo/images-tokenizer", f"data.url={data}", f"output={run}",
             f"steps={steps}", "--launcher", "local", "--gpus-per-worker", "auto"],
        ]  # fmt: skip
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
            if done.returncode:
                bench.check("ifsq train", False, said=done.stderr.strip().splitlines()[-1:])
                return
        result = json.loads((run / "result.json").read_text())
        bench.check(
            "ifsq train",
            result["steps"] == steps,
            seconds=round(result["seconds"], 1),
            final_loss=result["final_loss"],
        )
