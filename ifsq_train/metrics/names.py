"""Every metric the project exports: name, type, labels, unit and help, in one place.

Names follow the Prometheus conventions (``promtool check metrics`` passes): prefix ``ifsq_``,
base units, and the unit as suffix (``_seconds``, ``_bytes``, ``_ratio``; ``_total`` for
counters). Entropies are in bits of information, which Prometheus has no unit suffix for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "ifsq_"


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: full exported name.
        kind: Prometheus type.
        help: one sentence, with the unit where the name does not say it.
        labels: label names; their values are few (networks, terms, channels), never sample,
            step or process ids.
        scope: ``run``: the same for the whole run, so only rank 0 exports it; ``process``: each
            process exports its own and the endpoint adds them up over a node.
        buckets: upper bounds of a histogram's buckets.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    scope: Literal["run", "process"] = "run"
    buckets: tuple[float, ...] = ()


_STEP_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

# ---------------------------------------------------------------- training

LOSS = MetricSpec(
    "ifsq_training_loss",
    "gauge",
    "Loss at the last logged step, mean over the global batch, by term.",
    ("term",),
)
LEARNING_RATE = MetricSpec(
    "ifsq_training_learning_rate",
    "gauge",
    "Learning rate of the last optimizer step, by network.",
    ("network",),
)
GRADIENT_NORM = MetricSpec(
    "ifsq_training_gradient_norm",
    "gauge",
    "Global L2 norm of the gradients before clipping, by network.",
    ("network",),
)
STEP = MetricSpec(
    "ifsq_training_step",
    "gauge",
    "Optimizer steps done since the start of the run, as the next checkpoint will say.",
)
PLANNED_STEPS = MetricSpec(
    "ifsq_training_planned_steps", "gauge", "Optimizer steps after which the run is finished."
)
STEPS = MetricSpec(
    "ifsq_training_steps_total",
    "counter",
    "Optimizer steps computed since the workers started; steps repeated after a restart count.",
)
SAMPLES = MetricSpec(
    "ifsq_training_samples_total",
    "counter",
    "Samples of all global batches computed since the workers started.",
)
IMAGES_PER_SECOND = MetricSpec(
    "ifsq_training_images_per_second",
    "gauge",
    "Images of the global batch per second of wall time since the previous logged step.",
)
DATA_WAIT_SECONDS = MetricSpec(
    "ifsq_training_data_wait_seconds_total",
    "counter",
    "Seconds a worker waited for its next batch, by rank: a slow reader shows as waiting on one"
    " rank only.",
    ("rank",),
    scope="process",
)
PASS_SECONDS = MetricSpec(
    "ifsq_training_pass_seconds_total",
    "counter",
    "Seconds a worker's device spent in forward and backward passes, by rank. A backward pass ends"
    " when the gradients of all ranks are there, so it includes waiting for the slowest one.",
    ("rank", "direction"),
    scope="process",
)
STEP_SECONDS = MetricSpec(
    "ifsq_training_step_seconds",
    "histogram",
    "Wall time of a training step on rank 0, waiting for data included.",
    buckets=_STEP_BUCKETS,
)
PHASE_SECONDS = MetricSpec(
    "ifsq_training_phase_seconds_total",
    "counter",
    "Wall time of rank 0 by phase of the step: data, compute, optimizer, checkpoint.",
    ("phase",),
)
FLOPS_PER_SECOND = MetricSpec(
    "ifsq_training_flops_per_second",
    "gauge",
    "Floating-point operations of forward and backward passes per second of wall time, all"
    " workers, since the previous logged step.",
)
MODEL_FLOPS_UTILISATION = MetricSpec(
    "ifsq_training_model_flops_utilisation_ratio",
    "gauge",
    "That rate over the workers' dense bf16 peak; only on GPUs whose peak is known.",
)
DEVICE_MEMORY_PEAK = MetricSpec(
    "ifsq_training_device_memory_peak_bytes",
    "gauge",
    "Most memory rank 0 had allocated on its GPU since it started.",
)
CHECKPOINT_SECONDS = MetricSpec(
    "ifsq_training_checkpoint_seconds",
    "histogram",
    "Wall time a checkpoint held up the training of rank 0; writing goes on in the background.",
    buckets=_STEP_BUCKETS,
)
CHECKPOINT_TIMESTAMP = MetricSpec(
    "ifsq_training_checkpoint_last_success_timestamp_seconds",
    "gauge",
    "Unix time at which rank 0 last handed over a checkpoint without error.",
)
CHECKPOINT_EVERY = MetricSpec(
    "ifsq_training_checkpoint_every_steps", "gauge", "Optimizer steps between two checkpoints."
)
LAST_STEP_TIMESTAMP = MetricSpec(
    "ifsq_training_last_step_timestamp_seconds",
    "gauge",
    "Unix time of the last logged step; stands still when the run does.",
)
USEFUL_SECONDS = MetricSpec(
    "ifsq_training_useful_seconds",
    "gauge",
    "Time spent computing steps that count, over all starts of the run: without waiting for data"
    " and checkpoints, and without steps that a restart had to repeat.",
)
GOODPUT = MetricSpec(
    "ifsq_training_goodput_ratio",
    "gauge",
    "Useful seconds over wall time since the run was submitted.",
)
TOKENS = MetricSpec(
    "ifsq_training_tokens_total",
    "counter",
    "Tokens or latent positions of all global batches computed since the workers started.",
)
RUN_INFO = MetricSpec(
    "ifsq_training_run_info",
    "gauge",
    "1; the labels say what is trained and how.",
    ("task", "strategy", "precision"),
)
TAG = MetricSpec(
    "ifsq_training_tag",
    "gauge",
    "1 for each of the recipe's tags, such as `study` and `variant`.",
    ("key", "text"),
)
RESTARTS = MetricSpec(
    "ifsq_training_restarts_total",
    "counter",
    "Times the run was started again in its folder, by Ray or by hand, since its first start.",
)
WORLD_SIZE = MetricSpec("ifsq_training_world_size", "gauge", "Workers the run has now.")

# ---------------------------------------------------------------- tokenizer

CODE_ENTROPY = MetricSpec(
    "ifsq_tokenizer_code_entropy",
    "gauge",
    "Entropy of the tokens of a batch over the codebook, in bits.",
)
DIGIT_ENTROPY = MetricSpec(
    "ifsq_tokenizer_digit_entropy",
    "gauge",
    "Entropy of the levels a latent channel uses, in bits; log2 of its levels is the most.",
    ("channel",),
)
DEAD_LEVELS = MetricSpec(
    "ifsq_tokenizer_dead_levels",
    "gauge",
    "Levels of a latent channel that no position of the batch uses.",
    ("channel",),
)
INPUT_MEAN = MetricSpec(
    "ifsq_tokenizer_prebound_mean",
    "gauge",
    "Running mean of a latent channel before the bound.",
    ("channel",),
)
INPUT_VARIANCE = MetricSpec(
    "ifsq_tokenizer_prebound_variance",
    "gauge",
    "Running variance of a latent channel before the bound; the bound's slope suits 1.",
    ("channel",),
)

# ---------------------------------------------------------------- precompute

PRECOMPUTE_EXPECTED_ROWS = MetricSpec(
    "ifsq_precompute_expected_rows", "gauge", "Token rows the finished dataset will have."
)
PRECOMPUTE_DONE_ROWS = MetricSpec(
    "ifsq_precompute_done_rows",
    "gauge",
    "Token rows of published work items, those of earlier starts included.",
)
PRECOMPUTE_ROWS = MetricSpec(
    "ifsq_precompute_rows_total",
    "counter",
    "Token rows written since this start.",
    scope="process",
)
PRECOMPUTE_ITEMS = MetricSpec(
    "ifsq_precompute_items_total",
    "counter",
    "Work items (token shards) published.",
    scope="process",
)
PRECOMPUTE_RETRIES = MetricSpec(
    "ifsq_precompute_retries_total",
    "counter",
    "Work items given out again because the process that held them was lost.",
    scope="process",
)
PRECOMPUTE_PENDING = MetricSpec(
    "ifsq_precompute_pending_items",
    "gauge",
    "Work items that are not published yet: the queue the encoders work off.",
)
PRECOMPUTE_ENCODERS = MetricSpec(
    "ifsq_precompute_encoders",
    "gauge",
    "Encoders that are up or starting.",
)
PRECOMPUTE_STAGE_SECONDS = MetricSpec(
    "ifsq_precompute_stage_seconds_total",
    "counter",
    "Seconds all encoders spent per stage: waiting for work items, waiting for pixels, encoding,"
    " waiting for the storage.",
    ("stage",),
)
PRECOMPUTE_LAST_TIMESTAMP = MetricSpec(
    "ifsq_precompute_last_item_timestamp_seconds",
    "gauge",
    "Unix time at which the last work item was published; the start before the first.",
)
# ---------------------------------------------------------------- data

BATCH_WAIT_SECONDS = MetricSpec(
    "ifsq_data_batch_wait_seconds",
    "histogram",
    "Time rank 0 waited for one batch.",
    buckets=(0.0001, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0),
)
QUARANTINED = MetricSpec(
    "ifsq_data_quarantined_samples_total",
    "counter",
    "Samples that could not be read and were replaced.",
    scope="process",
)

# ---------------------------------------------------------------- processes

RESIDENT_MEMORY = MetricSpec(
    "ifsq_process_resident_memory_bytes",
    "gauge",
    "Resident memory of the run's processes on this node, summed.",
    scope="process",
)

DEVICE_MEMORY = MetricSpec(
    "ifsq_process_device_memory_bytes",
    "gauge",
    "GPU memory held by the run's processes on this node, summed; only on GPUs.",
    scope="process",
)
STORAGE_FREE = MetricSpec(
    "ifsq_storage_free_bytes", "gauge", "Free space of the file system with the run folder."
)
STORAGE_SIZE = MetricSpec(
    "ifsq_storage_size_bytes", "gauge", "Size of the file system with the run folder."
)

METRICS: tuple[MetricSpec, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, MetricSpec)
)
