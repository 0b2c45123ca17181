"""The loop, and the place where a run is put together. Read it top to bottom."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.prefetch import Prefetcher
from data_pipelines.storage.local import write_atomically
from ifsq_train.assembly.strategy import build_strategy
from ifsq_train.assembly.task import build_task
from ifsq_train.checkpoint.fence import Fence
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import LoadingConfig, OptimConfig, TrainConfig, to_dict
from ifsq_train.config.shares import check_shares, num_micro_batches
from ifsq_train.data.base import TrainData
from ifsq_train.data.batch import Batch
from ifsq_train.data.classes import classes_of
from ifsq_train.data.open import Serve, extras_for, open_train_data, without_helpers
from ifsq_train.distributed.collectives import any_rank, mean_over_ranks
from ifsq_train.distributed.context import RunContext
from ifsq_train.distributed.interruption import Interrupted, Interruption, catching_sigterm
from ifsq_train.distributed.vote import InterruptionVote, shared_attempt_id
from ifsq_train.metrics.step_meter import StepMeter
from ifsq_train.metrics.training import TrainingMetrics
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.base import StepStats, Strategy
from ifsq_train.tasks.base import StepInfo, TrainTask, with_draws
from ifsq_train.training.dry_run import prepare_networks
from ifsq_train.training.ema import WeightAverage
from ifsq_train.training.failure import FailureLog
from ifsq_train.training.nonfinite import NonFiniteGuard, as_number
from ifsq_train.training.profiling import StepProfiler
from ifsq_train.training.saved_state import Start, collect_state, restore, roll_back
from ifsq_train.training.tracked_images import TrackedImages
from ifsq_train.training.watchdog import Watchdog
from ifsq_train.versions import library_versions, run_environment


@dataclass
class Run:
    """Everything a running worker holds; made by `assemble`, used by `fit`."""

    config: TrainConfig
    context: RunContext
    folder: Path
    loading: LoadingConfig
    data: TrainData
    task: TrainTask
    strategy: Strategy
    averages: dict[str, WeightAverage]
    state: TrainState
    writer: CheckpointWriter
    fence: Fence
    metrics: TrainingMetrics
    meter: StepMeter
    guard: NonFiniteGuard
    watchdog: Watchdog
    resumed_from: int | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)
    """Settings that changed between starts of the run, with the step."""
    pictures: TrackedImages | None = None
    classes: tuple[int, ...] | None = None
    """Classes that a generator's data has; None where that is not known."""

    def load(self, step: int) -> Batch:
        """This worker's share of a global batch with its random numbers, in host memory."""
        batch = self.data.load(step, self.context.rank, self.context.world_size)
        batch = with_draws(batch, self.task, BatchRandom(self.config.seed, step, batch.positions))
        return batch.pinned() if self.context.device.type == "cuda" else batch


def run(
    config: TrainConfig,
    context: RunContext,
    serve: Serve = without_helpers,
    loading: LoadingConfig | None = None,
    allow_changes: Sequence[str] = (),
) -> dict[str, Any]:
    """Train to `config.steps`, resuming from the newest intact checkpoint if there is one.

    The same function runs in-process, under torchrun and inside a Ray Train worker.

    Args:
        config: the recipe.
        context: this worker's place in the run.
        serve: replaces the training data by a source of the same batches, such as a pool of
            decoding actors.
        loading: how batches are loaded ahead.
        allow_changes: keys in which the recipe may differ from the checkpoint's.

    Returns:
        The run's result, which rank 0 also writes to ``result.json`` in the run folder.

    Raises:
        UserError: anything the user can mend (data, batch size, changed recipe, ...).
        Interrupted: it was asked to leave, and has saved its state.
    """
    started = time.monotonic()
    folder = Path(config.output).absolute()
    failures = FailureLog(folder, context.launch_id)
    attempt = shared_attempt_id()
    try:
        loading = loading or LoadingConfig()
        parts = assemble(config, context, serve, attempt, failures, loading, allow_changes)
        try:
            with catching_sigterm(), parts.watchdog:
                fit(parts)
        finally:
            parts.metrics.close()
            parts.writer.abort()
    except Exception as error:
        if not isinstance(error, Interrupted):
            failures.record(attempt, context.rank, error)
        raise
    return finish(parts, failures, time.monotonic() - started)


def assemble(
    config: TrainConfig,
    context: RunContext,
    serve: Serve,
    attempt: str,
    failures: FailureLog,
    loading: LoadingConfig,
    allow_changes: Sequence[str],
) -> Run:
    """Open the data, build and wrap the networks, take over saved state."""
    folder = Path(config.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    check_shares(config, context.world_size)
    data = open_train_data(
        config.data,
        seed=config.seed,
        run_folder=folder,
        rank=context.rank,
        device=context.device,
        extras=extras_for(config.task),
        decode_threads=loading.decode_threads or 1,
    )
    classes = _trained_classes(config, data, context)
    opened, data = data, serve(data, config)
    task = build_task(config, data, context)
    flops = prepare_networks(config, context, data, task)
    strategy = build_strategy(
        config.strategy, context, skip_nonfinite=config.on_nonfinite == "skip"
    )
    strategy.prepare(task.modules(), _scaled_optim(config), config.steps)
    averages = _weight_averages(config, strategy, task)
    fence = Fence(folder / "checkpoints", attempt)
    writer = _open_writer(config, context, fence, attempt)
    if context.rank == 0:
        fence.take()
    state = TrainState(data.plan.digest)
    start = Start(config, data.describe(), allow_changes)
    resumed_from, changes = restore(folder, context, strategy, averages, state, start)
    return Run(
        config=config,
        context=context,
        folder=folder,
        loading=loading,
        data=data,
        task=task,
        strategy=strategy,
        averages=averages,
        state=state,
        writer=writer,
        fence=fence,
        metrics=TrainingMetrics(config, context, folder, state.step, task.describe()),
        meter=StepMeter(context.device, context.world_size, flops),
        guard=NonFiniteGuard(config.on_nonfinite),
        watchdog=_open_watchdog(config, context, attempt, failures),
        resumed_from=resumed_from,
        changes=changes,
        pictures=TrackedImages(config, context, opened, task),
        classes=classes,
    )


def _scaled_optim(config: TrainConfig) -> dict[str, OptimConfig]:
    """Settings of the optimizers, learning rates as the global batch asks for."""
    batch = config.data.global_batch_size
    return {name: settings.for_batch(batch) for name, settings in config.optim.items()}


def _trained_classes(
    config: TrainConfig, data: TrainData, context: RunContext
) -> tuple[int, ...] | None:
    """The classes a generator's data has; None if that is not known, or for a tokenizer."""
    seen = None
    if context.rank == 0 and config.task.kind != "tokenizer":
        seen = classes_of(data)
    return (seen.known or None) if seen is not None and seen.complete else None


def _weight_averages(
    config: TrainConfig, strategy: Strategy, task: TrainTask
) -> dict[str, WeightAverage]:
    if config.ema_decay is None:
        return {}
    decay, warmup = config.ema_decay, config.ema_warmup
    return {name: WeightAverage(strategy, name, decay, warmup) for name in task.averaged()}


def _open_writer(
    config: TrainConfig, context: RunContext, fence: Fence, attempt: str
) -> CheckpointWriter:
    return CheckpointWriter(
        Path(config.output).absolute() / "checkpoints",
        rank=context.rank,
        world_size=context.world_size,
        attempt=attempt,
        retention=Retention.of(config.checkpoint),
        max_failed_saves=config.checkpoint.max_failed_saves,
        agree=any_rank,
        fence=fence,
    )


def _open_watchdog(
    config: TrainConfig, context: RunContext, attempt: str, failures: FailureLog
) -> Watchdog:
    return Watchdog(
        Path(config.output).absolute(),
        attempt=attempt,
        rank=context.rank,
        world_size=context.world_size,
        timeout_seconds=config.watchdog_seconds,
        on_hang=lambda message, stack: failures.record_text(attempt, context.rank, message, stack),
    )


def fit(run: Run) -> None:
    """The loop: one global batch per step until the recipe's number of steps is reached."""
    config, state = run.config, run.state
    steps = range(state.step, config.steps)
    vote, asked = InterruptionVote(run.context), Interruption.NONE
    profiler = StepProfiler(config.profile, run.context, run.folder)
    ahead, threads = run.loading.prefetch_batches, run.loading.reader_threads
    with Prefetcher(run.load, steps, ahead, threads) as batches:
        while state.step < config.steps:
            began = time.perf_counter()
            run.watchdog.beat(state.step, "data")
            profiler.before(state.step)
            with run.meter.phase("data"):
                batch = next(batches).to(run.context.device)
            waited = time.perf_counter() - began
            run.metrics.waited(waited)
            run.watchdog.beat(state.step, "compute")
            losses, stats = train_step(run, batch)
            profiler.after(state.step)
            if run.guard.note(state.step, stats):
                go_back(run)
            state.step += 1
            state.samples_seen += run.data.plan.global_batch_size
            asked = vote.exchange()
            ends = state.step == config.steps or asked >= Interruption.PREEMPTED
            due = ends or asked or state.step % config.checkpoint.every_steps == 0
            if due or config.is_logged(state.step - 1):
                log(run, losses, stats, time.perf_counter() - began, waited)
            if run.pictures is not None:
                run.pictures.report(state.step, run.metrics)
            if due:
                save(run)
            if ends:
                break
    profiler.close()
    run.writer.settle()
    if state.step < config.steps:
        raise Interrupted(state.step, asked)


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
        with run.meter.phase("compute"):
            for index in range(count):
                part = batch.part(index, count)
                share = len(part) * context.world_size / config.data.global_batch_size
                # A worker that has run out takes part in the collectives, with weight zero.
                part = part if len(part) else batch.part(0, len(batch))
                random = BatchRandom(
                    config.seed, step, part.positions, context.rank, index, part.draws
                )
                info = StepInfo(step, random, share, count, run.strategy, config.is_logged(step))
                with run.strategy.updating(name, last_micro_batch=index == count - 1) as models:
                    with run.meter.device_pass("forward"):
                        output = run.task.loss(name, models, part, info)
                    with run.meter.device_pass("backward"):
                        run.strategy.backward(name, output.loss * share)
                for key, value in output.metrics.items():
                    totals[key] = totals.get(key, 0.0) + value.float() * share
        with run.meter.phase("optimizer"):
            stats[name] = run.strategy.step(name)
            if name in run.averages and stats[name].applied:
                run.averages[name].update()
        run.meter.worked(name, config.data.global_batch_size)
    return totals, stats


def log(
    run: Run,
    losses: dict[str, Tensor],
    stats: dict[str, StepStats],
    step_seconds: float,
    data_wait_seconds: float,
) -> None:
    """Average over ranks, then to Prometheus, JSON lines and the progress line."""
    run.watchdog.beat(run.state.step, "log")
    if run.guard.check():
        go_back(run)
    if run.context.rank == 0:
        run.fence.check()
    names = sorted(losses)
    means = mean_over_ranks(torch.stack([losses[name].reshape(()) for name in names]))
    record = dict(zip(names, means.tolist(), strict=True))
    for name, stat in stats.items():
        record[f"grad_norm/{name}"] = as_number(stat.grad_norm)
        record[f"lr/{name}"] = stat.lr
    # A step that updates one network of two has no loss of the other: keep its latest.
    run.state.last_record |= record
    run.metrics.passes(run.meter.take_passes())
    run.metrics.step(run.state, record, step_seconds, data_wait_seconds, run.meter.take())


def go_back(run: Run) -> None:
    """Take the weights of the last checkpoint and go on with the next batch."""
    run.writer.settle()
    roll_back(run.folder, run.context, run.strategy, run.averages)


def save(run: Run) -> None:
    """Hand the state to the writer; only the copy to host memory happens on this path."""
    run.watchdog.beat(run.state.step, "save")
    began = time.perf_counter()
    with run.meter.phase("checkpoint"):
        pieces, buffers = collect_state(run.strategy, list(run.task.modules()), run.averages)
        run.writer.save(run.state.step, pieces, buffers, checkpoint_header(run))
    run.metrics.checkpoint(run.state.step, time.perf_counter() - began)
    run.context.report(run.state.last_record)


def checkpoint_header(run: Run) -> dict[str, Any]:
    """What a checkpoint says of the run besides its tensors."""
    return {
        "train_state": run.state.to_dict(),
        "optimizer_steps": {n: run.strategy.optimizer_steps(n) for n in run.task.modules()},
        "recipe": to_dict(run.config),
        "changes": run.changes,
        "data": run.data.describe(),
        "classes": run.classes,
        "task": run.task.describe(),
        "engine": run.strategy.describe(),
        "versions": library_versions(),
    }


def finish(run: Run, failures: FailureLog, seconds: float) -> dict[str, Any]:
    """The run's result; written by rank 0."""
    result = {
        "name": run.config.name,
        "kind": run.config.task.kind,
        "steps": run.state.step,
        "resumed_from": run.resumed_from,
        "changes": run.changes,
        "samples_seen": run.state.samples_seen,
        "skipped_updates": run.guard.skipped,
        "final_loss": run.state.last_record.get("loss"),
        "final": run.state.last_record,
        "seconds": seconds,
        **run.strategy.describe(),
        "data": run.data.describe(),
        "versions": library_versions(),
        "environment": run_environment(),
    }
    if run.context.rank == 0:
        write_atomically(run.folder / "result.json", json.dumps(result, indent=1).encode())
        failures.clear()
    return result
