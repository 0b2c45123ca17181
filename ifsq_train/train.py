"""The loop, and the place where a run is put together. Read it top to bottom."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from data_pipelines.prefetch import Prefetcher
from ifsq_train.build import build_strategy, build_task
from ifsq_train.checkpoint import write_atomically
from ifsq_train.checkpoint_writer import CheckpointWriter, shared_attempt_id
from ifsq_train.config import TrainConfig, to_dict
from ifsq_train.context import RunContext, mean_over_ranks
from ifsq_train.data import TrainData, extras_for, open_train_data
from ifsq_train.ema import WeightAverage
from ifsq_train.metrics.training import TrainingMetrics
from ifsq_train.randomness import BatchRandom
from ifsq_train.saved_state import collect_state, restore
from ifsq_train.state import TrainState
from ifsq_train.strategy.base import StepStats, Strategy
from ifsq_train.tasks.base import Batch, StepInfo, TrainTask
from ifsq_train.versions import library_versions

logger = logging.getLogger(__name__)


@dataclass
class Run:
    """Everything a running worker holds; made by `assemble`, used by `fit`."""

    config: TrainConfig
    context: RunContext
    folder: Path
    data: TrainData
    task: TrainTask
    strategy: Strategy
    averages: dict[str, WeightAverage]
    state: TrainState
    writer: CheckpointWriter
    metrics: TrainingMetrics
    resumed_from: int | None = None

    def load(self, step: int) -> Batch:
        """This worker's share of a global batch, in host memory."""
        batch = self.data.load(step, self.context.rank, self.context.world_size)
        return batch.pinned() if self.context.device.type == "cuda" else batch


def run(config: TrainConfig, context: RunContext) -> dict[str, Any]:
    """Train to `config.steps`, resuming from the newest intact checkpoint if there is one.

    The same function runs in-process, under torchrun and inside a Ray Train worker.

    Returns:
        The run's result, which rank 0 also writes to ``result.json`` in the run folder.

    Raises:
        UserError: anything the user can mend (data, batch size, changed recipe, ...).
    """
    started = time.monotonic()
    run = assemble(config, context)
    try:
        fit(run)
    finally:
        run.metrics.close()
        run.writer.close()
    return finish(run, time.monotonic() - started)


def assemble(config: TrainConfig, context: RunContext) -> Run:
    """Open the data, build and wrap the networks, take over saved state."""
    folder = Path(config.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    data = open_train_data(
        config.data,
        seed=config.seed,
        run_folder=folder,
        rank=context.rank,
        device=context.device,
        extras=extras_for(config.task),
    )
    check_batch_split(config, context.world_size)
    task = build_task(config, data, context)
    for module in task.auxiliary().values():
        module.to(context.device).requires_grad_(False).eval()
    strategy = build_strategy(config.strategy, context)
    strategy.prepare(task.modules(), config.optim, config.steps)
    averages = (
        {name: WeightAverage(strategy, name, config.ema_decay) for name in task.averaged()}
        if config.ema_decay is not None
        else {}
    )
    writer = CheckpointWriter(
        folder / "checkpoints",
        rank=context.rank,
        world_size=context.world_size,
        attempt=shared_attempt_id(),
        keep_last=config.checkpoint.keep_last,
    )
    state = TrainState(data.plan.digest)
    resumed_from = restore(folder, context, strategy, averages, state)
    metrics = TrainingMetrics(config, context, folder, state.step, data.describe().get("grid"))
    built = Run(config, context, folder, data, task, strategy, averages, state, writer, metrics)
    built.resumed_from = resumed_from
    return built


def check_batch_split(config: TrainConfig, world_size: int) -> None:
    """Refuse batches that do not split evenly.

    Raises:
        UserError: with the nearest sizes that do.
    """
    batch = config.data.global_batch_size
    if batch % world_size:
        below, above = batch // world_size * world_size, -(-batch // world_size) * world_size
        choices = " or ".join(str(size) for size in (below, above) if size)
        raise UserError(
            f"data.global_batch_size={batch} is not divisible by the {world_size}"
            f" workers; use {choices}"
        )


def fit(run: Run) -> None:
    """The loop: one global batch per step until the recipe's number of steps is reached."""
    config, state = run.config, run.state
    steps = range(state.step, config.steps)
    with Prefetcher(run.load, steps, config.data.prefetch_batches) as batches:
        while state.step < config.steps:
            began = time.perf_counter()
            batch = next(batches).to(run.context.device)
            waited = time.perf_counter() - began
            run.metrics.waited(waited)
            losses, stats = train_step(run, batch)
            state.step += 1
            state.samples_seen += run.data.plan.global_batch_size
            last = state.step == config.steps
            if last or state.step % config.log_every_steps == 0:
                log(run, losses, stats, time.perf_counter() - began, waited)
            if last or state.step % config.checkpoint.every_steps == 0:
                save(run)
                run.context.report(run.state.last_record, run.folder)
    run.writer.wait()


def train_step(run: Run, batch: Batch) -> tuple[dict[str, Tensor], dict[str, StepStats]]:
    """Update every network that is due on one global batch.

    Returns:
        Mean losses of this rank's share by name, and what each optimizer did by network.
    """
    config, context, step = run.config, run.context, run.state.step
    totals: dict[str, Tensor] = {}
    stats: dict[str, StepStats] = {}
    count = num_micro_batches(config, context.world_size)
    for name in run.task.updates(step):
        for index in range(count):
            part = batch.part(index, count)
            share = len(part) * context.world_size / config.data.global_batch_size
            random = BatchRandom(config.seed, step, part.positions, context.rank, index)
            info = StepInfo(step, random, share, count, run.strategy)
            with run.strategy.updating(name, last_micro_batch=index == count - 1) as models:
                output = run.task.loss(name, models, part, info)
                run.strategy.backward(name, output.loss * share)
            for key, value in output.metrics.items():
                totals[key] = totals.get(key, 0.0) + value.float() * share
        stats[name] = run.strategy.step(name)
        if name in run.averages:
            run.averages[name].update()
    return totals, stats


def num_micro_batches(config: TrainConfig, world_size: int) -> int:
    """Micro-batches per update, equal on all ranks."""
    share = math.ceil(config.data.global_batch_size / world_size)
    return math.ceil(share / (config.strategy.micro_batch_size or share))


def log(
    run: Run,
    losses: dict[str, Tensor],
    stats: dict[str, StepStats],
    step_seconds: float,
    data_wait_seconds: float,
) -> None:
    """Average over ranks, then to Prometheus, JSON lines and the progress line."""
    names = sorted(losses)
    means = mean_over_ranks(torch.stack([losses[name].reshape(()) for name in names]))
    record = dict(zip(names, means.tolist(), strict=True))
    for name, stat in stats.items():
        record[f"grad_norm/{name}"] = stat.grad_norm
        record[f"lr/{name}"] = stat.lr
    # A step that updates one network of two has no loss of the other: keep its latest.
    run.state.last_record |= record
    run.metrics.step(run.state, record, step_seconds, data_wait_seconds)


def save(run: Run) -> None:
    """Hand the state to the writer; only the copy to host memory happens on this path."""
    began = time.perf_counter()
    pieces, buffers = collect_state(run.strategy, list(run.task.modules()), run.averages)
    run.writer.save(run.state.step, pieces, buffers, checkpoint_header(run))
    run.metrics.checkpoint(run.state.step, time.perf_counter() - began)


def checkpoint_header(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run besides its tensors."""
    return {
        "train_state": run.state.to_dict(),
        "optimizer_steps": {n: run.strategy.optimizer_steps(n) for n in run.task.modules()},
        "recipe": to_dict(run.config),
        "data": run.data.describe(),
        "task": run.task.describe(),
        "engine": run.strategy.describe(),
        "versions": library_versions(),
    }


def finish(run: Run, seconds: float) -> dict[str, Any]:
    """The run's result; written by rank 0."""
    result = {
        "name": run.config.name,
        "kind": run.config.task.kind,
        "steps": run.state.step,
        "resumed_from": run.resumed_from,
        "samples_seen": run.state.samples_seen,
        "final_loss": run.state.last_record.get("loss"),
        "final": run.state.last_record,
        "seconds": seconds,
        **run.strategy.describe(),
        "data": run.data.describe(),
        "versions": library_versions(),
    }
    if run.context.rank == 0:
        write_atomically(run.folder / "result.json", json.dumps(result, indent=1).encode())
    return result
