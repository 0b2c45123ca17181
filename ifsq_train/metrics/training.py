"""What the training loop reports, to the run's log and to Prometheus."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.config import ImageDataConfig, TokenizerTaskConfig, TrainConfig, to_dict
from ifsq_train.distributed.context import RunContext
from ifsq_train.metrics import names
from ifsq_train.metrics.goodput import Goodput
from ifsq_train.metrics.jsonl import JsonlWriter, read_jsonl
from ifsq_train.metrics.names import MetricSpec
from ifsq_train.metrics.prometheus import HOST_VARIABLE, endpoint_port, open_metrics
from ifsq_train.metrics.tracker import Shown, TrackedRun
from ifsq_train.metrics.trackers import Trackers

logger = logging.getLogger(__name__)

STARTS = "starts.jsonl"

# What stands before the slash of a record's key, the metric, and the label for the rest.
_BY_PREFIX: dict[str, tuple[MetricSpec, str]] = {
    "lr": (names.LEARNING_RATE, "network"),
    "grad_norm": (names.GRADIENT_NORM, "network"),
    "digit_entropy": (names.DIGIT_ENTROPY, "channel"),
    "dead_levels": (names.DEAD_LEVELS, "channel"),
    "prebound_mean": (names.INPUT_MEAN, "channel"),
    "prebound_variance": (names.INPUT_VARIANCE, "channel"),
}

_SPEEDS: dict[str, MetricSpec] = {
    "flops_per_second": names.FLOPS_PER_SECOND,
    "mfu": names.MODEL_FLOPS_UTILISATION,
    "peak_memory_bytes": names.DEVICE_MEMORY_PEAK,
}


class TrainingMetrics:
    """One worker's reports. Rank 0 also writes ``metrics.jsonl`` and ``starts.jsonl``.

    Where the endpoint listens belongs to the machine, not to a recipe, so it is read from the
    environment: IFSQ_METRICS_PORT (a number; 0, the default, takes a free port; ``off`` starts
    none) and IFSQ_METRICS_HOST (default 127.0.0.1).
    """

    def __init__(
        self,
        config: TrainConfig,
        context: RunContext,
        folder: Path,
        first_step: int,
        task: Mapping[str, Any] | None = None,
    ) -> None:
        """Open the log and the endpoint.

        Args:
            config: the recipe.
            context: this worker's place.
            folder: the run's folder; exists.
            first_step: optimizer steps done by the checkpoint resumed from; later lines of the
                log are dropped.
            task: what the task says of itself; a generator's has its `grid`.

        Raises:
            UserError: IFSQ_METRICS_PORT is no port. What else goes wrong is said in the log, and
                the run goes on.
        """
        self._rank = context.rank
        self._metrics = open_metrics(
            folder,
            context.rank,
            context.local_rank,
            endpoint_port(),
            host=os.environ.get(HOST_VARIABLE, "127.0.0.1"),
            begin=("ifsq_training_", "ifsq_data_"),
        )
        self._log: JsonlWriter | None = None
        self._last_step = first_step
        self._last_samples = first_step * config.data.global_batch_size
        self._last_time = time.monotonic()
        self._folder = folder
        self._tokens_per_sample = tokens_per_sample(config, task or {})
        self._goodput: Goodput | None = None
        self._trackers = Trackers((), TrackedRun(config.name, folder, {}))
        if context.rank == 0:
            self._trackers = Trackers(
                config.trackers, TrackedRun(config.name, folder, to_dict(config))
            )
            self._trackers.resume(first_step)
            self._log = JsonlWriter(folder / "metrics.jsonl", first_step)
            starts = record_start(folder / STARTS, first_step, context.world_size)
            self._goodput = Goodput(folder / "metrics.jsonl", folder / STARTS)
            self._metrics.inc(names.RESTARTS, starts - 1)
            self._describe(config)
            self._metrics.set(names.WORLD_SIZE, context.world_size)
            self._metrics.set(names.PLANNED_STEPS, config.steps)
            self._metrics.set(names.STEP, first_step)

    def _describe(self, config: TrainConfig) -> None:
        """What does not change while the run goes on."""
        self._metrics.set(names.CHECKPOINT_EVERY, config.checkpoint.every_steps)
        strategy = config.strategy
        self._metrics.set(
            names.RUN_INFO,
            1.0,
            task=config.task.kind,
            strategy=f"{strategy.kind}-{strategy.zero_stage}"
            if strategy.kind == "deepspeed"
            else strategy.kind,
            precision=strategy.precision,
        )
        for key, value in config.tags.items():
            self._metrics.set(names.TAG, 1.0, key=key, text=value)
        self._metrics.observe_storage(self._folder)

    def waited(self, seconds: float) -> None:
        """Count the time this worker waited for one batch; to be called on every step."""
        self._metrics.inc(names.DATA_WAIT_SECONDS, seconds, rank=str(self._rank))
        self._metrics.observe(names.BATCH_WAIT_SECONDS, seconds)
        if self._goodput is not None:
            self._goodput.idle(seconds)

    def passes(self, seconds: Mapping[str, float]) -> None:
        """Count the seconds this worker's device spent in each pass; every rank calls it."""
        for name, spent in seconds.items():
            self._metrics.inc(names.PASS_SECONDS, spent, rank=str(self._rank), direction=name)

    def step(
        self,
        state: TrainState,
        record: dict[str, float],
        step_seconds: float,
        data_wait_seconds: float,
        speed: Mapping[str, float] | None = None,
    ) -> None:
        """Report a logged step; every rank calls it, not necessarily after every step.

        Args:
            state: progress, this step included.
            record: numbers of the step. ``lr/NETWORK`` and ``grad_norm/NETWORK`` (and the
                tokenizer's ``digit_entropy/CHANNEL`` and so on) go to their own metrics, the
                rest are terms of ``ifsq_training_loss``.
            step_seconds: wall time of this one step.
            data_wait_seconds: part of it spent waiting for the batch.
            speed: what ``StepMeter.take`` measured since the last call.
        """
        self._metrics.observe_process()
        if self._log is None or self._goodput is None:
            return
        now = time.monotonic()
        steps, samples = state.step - self._last_step, state.samples_seen - self._last_samples
        # Over all steps since the last call, so that saving and unlogged steps count too.
        samples_per_second = samples / max(now - self._last_time, 1e-9)
        self._goodput.add(now - self._last_time, steps)
        self._last_step, self._last_samples = state.step, state.samples_seen
        self._last_time = now
        numbers = {
            "samples": state.samples_seen,
            **record,
            "step_seconds": step_seconds,
            "data_wait_seconds": data_wait_seconds,
            "data_wait_ratio": data_wait_seconds / step_seconds if step_seconds else 0.0,
            "samples_per_second": samples_per_second,
            "useful_seconds": self._goodput.useful_seconds,
            "goodput_ratio": self._goodput.ratio,
            **(speed or {}),
        }
        self._log.write({"step": state.step, **numbers, "wall_time": time.time()})
        self._trackers.scalars(state.step, numbers)
        self._export(record)
        self._export_speed(speed or {})
        self._metrics.set(names.STEP, state.step)
        self._metrics.set(names.LAST_STEP_TIMESTAMP, time.time())
        self._metrics.set(names.USEFUL_SECONDS, self._goodput.useful_seconds)
        self._metrics.set(names.GOODPUT, self._goodput.ratio)
        self._metrics.observe_storage(self._folder)
        self._metrics.inc(names.STEPS, steps)
        self._metrics.inc(names.SAMPLES, samples)
        self._metrics.inc(names.TOKENS, samples * self._tokens_per_sample)
        self._metrics.set(names.IMAGES_PER_SECOND, samples_per_second)
        self._metrics.observe(names.STEP_SECONDS, step_seconds)

    def _export(self, record: dict[str, float]) -> None:
        for key, value in record.items():
            prefix, _, rest = key.partition("/")
            if key == "code_entropy":
                self._metrics.set(names.CODE_ENTROPY, value)
            elif rest and prefix in _BY_PREFIX:
                spec, label = _BY_PREFIX[prefix]
                self._metrics.set(spec, value, **{label: rest})
            else:
                self._metrics.set(names.LOSS, value, term=key)

    def _export_speed(self, speed: Mapping[str, float]) -> None:
        for key, value in speed.items():
            prefix, _, phase = key.partition("/")
            if prefix == "seconds":
                self._metrics.inc(names.PHASE_SECONDS, value, phase=phase)
            elif key in _SPEEDS:
                self._metrics.set(_SPEEDS[key], value)

    def shown(self, step: int, shown: Shown, seconds: float) -> None:
        """Hand pictures and histograms to the trackers; not useful time of the run.

        Args:
            step: optimizer steps done.
            shown: what was made.
            seconds: that making them took.
        """
        if self._goodput is not None:
            self._goodput.idle(seconds)
        for name, images in shown.images.items():
            self._trackers.images(step, name, images)
        for name, (counts, edges) in shown.histograms.items():
            self._trackers.histogram(step, name, counts, edges)

    def checkpoint(self, step: int, stall_seconds: float) -> None:
        """Report a checkpoint handed to the writer.

        Args:
            step: optimizer steps it holds.
            stall_seconds: wall time the loop stood still for it.
        """
        del step
        if self._goodput is not None:
            self._goodput.idle(stall_seconds)
        self._metrics.observe(names.CHECKPOINT_SECONDS, stall_seconds)
        self._metrics.set(names.CHECKPOINT_TIMESTAMP, time.time())

    def close(self) -> None:
        """Close the log; local rank 0 also stops its node's endpoint."""
        self._trackers.close()
        if self._log is not None:
            self._log.close()
        self._metrics.close()


def tokens_per_sample(config: TrainConfig, task: Mapping[str, Any]) -> int:
    """Tokens or latent positions of one image; 0 where neither data nor task say it."""
    if "grid" in task:
        return math.prod(task["grid"])
    if not isinstance(config.data, ImageDataConfig):
        return 0
    if not isinstance(config.task, TokenizerTaskConfig):
        return 0
    reduction = 2 ** (len(config.task.model.channel_multipliers) - 1)
    return math.prod(side // reduction for side in config.data.view.size)


def record_start(path: Path, first_step: int, world_size: int) -> int:
    """Append a line about this start of the run; returns the number of starts so far, >= 1."""
    entry: dict[str, Any] = {
        "first_step": first_step,
        "world_size": world_size,
        "wall_time": time.time(),
    }
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
    except OSError as error:
        logger.warning("%s: %s; this start is not noted, the run goes on", path, error.strerror)
    return max(1, len(read_jsonl(path)))
