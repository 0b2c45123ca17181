"""The resume matrix: a small training that any engine and world size can save and go on with.

Everything of one world size happens in one set of processes: starting processes would take far
longer than the trainings.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ifsq_train.assembly.strategy import build_strategy
from ifsq_train.checkpoint.format import step_folder
from ifsq_train.checkpoint.reader import Checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import StrategyConfig
from ifsq_train.distributed.context import TorchrunContext
from ifsq_train.strategy.base import Strategy
from ifsq_train.training.ema import WeightAverage
from ifsq_train.training.saved_state import collect_state, load_network

NAMES = ["generator", "critic"]


def _prepared(stage: int | None, context: TorchrunContext) -> tuple[Strategy, WeightAverage]:
    from tests.support.workers import OPTIM, toy_networks

    kind: Any = "torch" if stage is None else "deepspeed"
    zero: Any = stage or 0
    strategy = build_strategy(StrategyConfig(kind=kind, zero_stage=zero), context)
    strategy.prepare(toy_networks(), OPTIM, 40)
    return strategy, WeightAverage(strategy, "generator", 0.9)


def _train(strategy: Strategy, average: WeightAverage, first: int, last: int) -> list[float]:
    from tests.support.workers import gan_step

    rank, world_size = dist.get_rank(), dist.get_world_size()
    losses = []
    for step in range(first, last):
        losses.append(gan_step(strategy, step, rank, world_size))
        average.update()
    return losses


def save_cells(folder: str, stages: list[int], save_at: int, last: int) -> dict[str, Any]:
    """Train, save at `save_at`, train on to `last`; the losses after saving by stage."""
    context = TorchrunContext()
    results = {}
    for stage in stages:
        strategy, average = _prepared(stage, context)
        before = _train(strategy, average, 0, save_at)
        writer = CheckpointWriter(
            Path(folder) / f"stage{stage}-world{context.world_size}",
            rank=context.rank,
            world_size=context.world_size,
            attempt="a",
            retention=Retention(1),
        )
        pieces, buffers = collect_state(strategy, NAMES, {"generator": average})
        steps = {name: strategy.optimizer_steps(name) for name in NAMES}
        writer.save(save_at, pieces, buffers, {"optimizer_steps": steps})
        writer.close()
        results[str(stage)] = {"before": before, "after": _train(strategy, average, save_at, last)}
    dist.barrier()
    return results


def load_cells(
    folder: str, stages: list[int], cells: list[str], save_at: int, last: int
) -> dict[str, Any]:
    """Load every saved cell at every stage; the losses that follow by ``saved>stage``."""
    context = TorchrunContext()
    results = {}
    for cell in cells:
        checkpoint = Checkpoint(step_folder(Path(folder) / cell, save_at))
        for stage in stages:
            # Other weights than the saved ones: a load that does nothing is seen.
            torch.manual_seed(99)
            strategy, average = _prepared(stage, context)
            for name, steps in checkpoint.header["optimizer_steps"].items():
                load_network(checkpoint, strategy, name, steps)
            average.load(checkpoint)
            results[f"{cell}>{stage}"] = _train(strategy, average, save_at, last)
    return results
