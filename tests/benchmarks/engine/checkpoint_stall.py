"""How long does saving hold up the steps? A 100 M parameter model, one save in fifty steps.

    python -m tests.benchmarks.engine.checkpoint_stall [--saves 2] [--every 50]

Prints the median step time, the part of all time in which the loop stood still for a save, and
the size of a checkpoint.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from ifsq_train import train
from ifsq_train.checkpoint.reader import newest_checkpoint
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from tests.support.trace_runs import RecordedData, recipe

SIDE, VOCABULARY, BATCH = 8, 16384, 2


def main() -> None:
    """Train, and read what the run's own log says of its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--saves", type=int, default=2)
    parser.add_argument("--every", type=int, default=50)
    options = parser.parse_args()
    steps = options.saves * options.every + 5
    torch.manual_seed(0)
    model = LlamaGen(
        num_layers=12,
        num_heads=12,
        dim=768,
        codebook_sizes=[VOCABULARY],
        grid=(SIDE, SIDE),
        num_classes=10,
    )
    tokens = torch.randint(VOCABULARY, (steps, BATCH, SIDE * SIDE))
    labels = torch.zeros(steps, BATCH, dtype=torch.int64)
    shape = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 64, "num_classes": 10}
    with tempfile.TemporaryDirectory() as folder:
        config = recipe(
            folder,
            {"kind": "torch"},
            steps=steps,
            data={"kind": "tokens"},
            batch=BATCH,
            task={"kind": "autoregressive", "model": shape},
            optim={"generator": {"lr": 1e-4}},
            ema_decay=0.999,
            checkpoint={"every_steps": options.every, "keep_last": 1},
        )
        settings: Any = config.task
        replaced: Any = train
        replaced.open_train_data = lambda *_args, **_kwargs: RecordedData(tokens, labels)
        replaced.build_task = lambda *_args: AutoregressiveTask(settings, model, None, None)
        train.run(config, InProcessContext(device=torch.device("cpu")))
        records = read_jsonl(Path(folder) / "metrics.jsonl")
        found = newest_checkpoint(Path(folder) / "checkpoints")
    assert found is not None
    size = sum(entry["bytes"] for entry in found.header["files"].values())
    # The last save waits for its writing on purpose: there is no step left to overlap with.
    within = [record for record in records if record["step"] <= steps - 1]
    stalls = [record["seconds/checkpoint"] for record in within if "seconds/checkpoint" in record]
    step = statistics.median(record["step_seconds"] for record in within)
    count = sum(p.numel() for p in model.parameters())
    print(f"{count / 1e6:.0f} M parameters, checkpoint {size / 2**30:.2f} GiB, {len(stalls)} saves")
    print(f"median step {step:.3f} s; stalls {[round(stall, 3) for stall in stalls]} s")
    print(
        f"stall over the time of {options.every} steps: "
        f"{statistics.mean(stalls) / (options.every * step):.2%}"
    )


if __name__ == "__main__":
    main()
