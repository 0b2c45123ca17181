"""What the dashboards show: panels as data, without Grafana's details."""

from __future__ import annotations

from dataclasses import dataclass

R = 'run=~"$run"'
"""Label matcher of every query."""
GPU_ONLY = {
    "Model FLOPs utilisation",
    "GPU memory by node",
    "Peak GPU memory of rank 0",
}
"""Panels that have no data on machines without a GPU."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: shown above it.
        unit: Grafana's unit id.
        queries: (PromQL, legend) pairs.
        help: what it shows and what to do when it looks wrong.
        kind: curve over time, or one number.
        minimum: lower end of the axis; None lets Grafana choose.
        maximum: upper end.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str
    kind: str = "curve"
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `variable` is the metric whose `run` labels can be chosen."""

    uid: str
    title: str
    description: str
    variable: str
    rows: dict[str, tuple[Panel, ...]]


def curve(title: str, unit: str, query: str, legend: str, help: str, **options: float) -> Panel:
    """A panel with one query."""
    return Panel(title, unit, ((query, legend),), help, **options)  # type: ignore[arg-type]


def number(title: str, unit: str, query: str, help: str) -> Panel:
    """A panel that shows the newest value for each run."""
    return Panel(title, unit, ((query, "{{run}}"),), help, kind="number")


TRAINING = Dashboard(
    "ifsq-training",
    "iFSQ / Training",
    "Losses, speed and safety of training runs.",
    "ifsq_training_step",
    {
        "Overview": (
            number(
                "Progress",
                "percentunit",
                f"ifsq_training_step{{{R}}} / ifsq_training_planned_steps{{{R}}}",
                "Steps done over steps planned.",
            ),
            number(
                "Time to go",
                "s",
                f"(ifsq_training_planned_steps{{{R}}} - ifsq_training_step{{{R}}})"
                f" / rate(ifsq_training_steps_total{{{R}}}[$__rate_interval])",
                "At the present speed.",
            ),
            number(
                "Goodput",
                "percentunit",
                f"ifsq_training_goodput_ratio{{{R}}}",
                "Time spent on steps that count, over time since submission.",
            ),
        ),
        "Learning": (
            curve(
                "Loss",
                "none",
                f"ifsq_training_loss{{{R}}}",
                "{{run}} {{term}}",
                "Mean over the global batch, by term. Runbook: loss-nan-or-spike.",
            ),
            curve(
                "Gradient norm",
                "none",
                f"ifsq_training_gradient_norm{{{R}}}",
                "{{run}} {{network}}",
                "Before clipping. It often rises before the loss does.",
            ),
            curve(
                "Learning rate",
                "none",
                f"ifsq_training_learning_rate{{{R}}}",
                "{{run}} {{network}}",
                "Of the last step, by network.",
            ),
        ),
        "Speed": (
            curve(
                "Images per second",
                "reqps",
                f"rate(ifsq_training_samples_total{{{R}}}[$__rate_interval])",
                "{{run}}",
                "Of all workers together.",
                minimum=0,
            ),
            curve(
                "Tokens per second",
                "reqps",
                f"rate(ifsq_training_tokens_total{{{R}}}[$__rate_interval])",
                "{{run}}",
                "Tokens, or latent positions of a tokenizer, of all workers together.",
                minimum=0,
            ),
            curve(
                "Model FLOPs utilisation",
                "percentunit",
                f"ifsq_training_model_flops_utilisation_ratio{{{R}}}",
                "{{run}}",
                "Over the dense bf16 peak; only on GPUs whose peak is known.",
                minimum=0,
                maximum=1,
            ),
            curve(
                "Time of a step",
                "s",
                f"rate(ifsq_training_step_seconds_sum{{{R}}}[$__rate_interval])"
                f" / rate(ifsq_training_step_seconds_count{{{R}}}[$__rate_interval])",
                "{{run}}",
                "Mean over logged steps, waiting for data included.",
                minimum=0,
            ),
            curve(
                "Where the time goes",
                "percentunit",
                f"rate(ifsq_training_phase_seconds_total{{{R}}}[$__rate_interval])",
                "{{run}} {{phase}}",
                "Share of wall time on rank 0, by phase of the step.",
                minimum=0,
            ),
            curve(
                "Waiting for data",
                "percentunit",
                f"avg by (run) (rate(ifsq_training_data_wait_seconds_total{{{R}}}"
                "[$__rate_interval]))",
                "{{run}}",
                "Share of wall time, mean over ranks. Runbook: data-bound.",
                minimum=0,
            ),
        ),
        "Safety": (
            curve(
                "Age of the last checkpoint",
                "s",
                f"time() - ifsq_training_checkpoint_last_success_timestamp_seconds{{{R}}}",
                "{{run}}",
                "This much work would be lost now. Runbook: checkpoint-too-old.",
                minimum=0,
            ),
            curve(
                "Time a checkpoint holds up training",
                "s",
                f"ifsq_training_checkpoint_seconds_sum{{{R}}}"
                f" / ifsq_training_checkpoint_seconds_count{{{R}}}",
                "{{run}}",
                "Mean since the workers started; writing goes on in the background.",
                minimum=0,
            ),
            curve(
                "Restarts",
                "none",
                f"ifsq_training_restarts_total{{{R}}}",
                "{{run}}",
                "Since the first start. Runbook: restart-loop.",
                minimum=0,
            ),
        ),
    },
)

TOKENIZER = Dashboard(
    "ifsq-tokenizer",
    "iFSQ / Tokenizer",
    "How a tokenizer in training uses its code.",
    "ifsq_tokenizer_code_entropy",
    {
        "Code": (
            curve(
                "Entropy of the code",
                "bits",
                f"ifsq_tokenizer_code_entropy{{{R}}}",
                "{{run}}",
                "Of the tokens of a batch, in bits; log2 of the codebook size is the most.",
                minimum=0,
            ),
            curve(
                "Entropy by channel",
                "bits",
                f"ifsq_tokenizer_digit_entropy{{{R}}}",
                "{{run}} {{channel}}",
                "log2 of a channel's levels is the most; far below, the channel is hardly used.",
                minimum=0,
            ),
            curve(
                "Dead levels by channel",
                "none",
                f"ifsq_tokenizer_dead_levels{{{R}}}",
                "{{run}} {{channel}}",
                "Levels that no position of the batch uses. Runbook: dead-levels.",
                minimum=0,
            ),
        ),
        "Before the bound": (
            curve(
                "Mean by channel",
                "none",
                f"ifsq_tokenizer_prebound_mean{{{R}}}",
                "{{run}} {{channel}}",
                "Running mean; should stay near 0.",
            ),
            curve(
                "Variance by channel",
                "none",
                f"ifsq_tokenizer_prebound_variance{{{R}}}",
                "{{run}} {{channel}}",
                "Running variance; the bound's slope is meant for values near 1.",
                minimum=0,
            ),
            curve(
                "Terms of the loss",
                "none",
                f'ifsq_training_loss{{{R}, term!="loss"}}',
                "{{run}} {{term}}",
                "By term, where the run has it.",
            ),
        ),
    },
)

PRECOMPUTE = Dashboard(
    "ifsq-precompute",
    "iFSQ / Precompute",
    "Encoding a dataset into token shards.",
    "ifsq_precompute_expected_rows",
    {
        "Progress": (
            number(
                "Rows done",
                "percentunit",
                f"ifsq_precompute_done_rows{{{R}}} / ifsq_precompute_expected_rows{{{R}}}",
                "Rows of published shards over rows of the finished dataset.",
            ),
            number(
                "Time to go",
                "s",
                f"(ifsq_precompute_expected_rows{{{R}}} - ifsq_precompute_done_rows{{{R}}})"
                f" / rate(ifsq_precompute_rows_total{{{R}}}[$__rate_interval])",
                "At the present speed.",
            ),
            number(
                "Since the last shard",
                "s",
                f"time() - ifsq_precompute_last_item_timestamp_seconds{{{R}}}",
                "Runbook: precompute-stuck.",
            ),
        ),
        "Work": (
            curve(
                "Rows per second",
                "rowsps",
                f"rate(ifsq_precompute_rows_total{{{R}}}[$__rate_interval])",
                "{{run}}",
                "Of all encoders together.",
                minimum=0,
            ),
            curve(
                "Queue",
                "none",
                f"ifsq_precompute_pending_items{{{R}}}",
                "{{run}}",
                "Shards that are not published yet.",
                minimum=0,
            ),
            Panel(
                "Encoders and lost work",
                "none",
                (
                    (f"ifsq_precompute_encoders{{{R}}}", "{{run}} encoders"),
                    (f"ifsq_precompute_retries_total{{{R}}}", "{{run}} given out again"),
                ),
                "Shards are given out again when the encoder that had them was lost.",
                minimum=0,
            ),
            curve(
                "Shards published",
                "none",
                f"ifsq_precompute_items_total{{{R}}}",
                "{{run}}",
                "Since this start.",
                minimum=0,
            ),
            curve(
                "Unreadable images",
                "none",
                f"ifsq_data_quarantined_samples_total{{{R}}}",
                "{{run}}",
                "Replaced, and named in the quarantine file.",
                minimum=0,
            ),
            curve(
                "Free space",
                "percentunit",
                f"ifsq_storage_free_bytes{{{R}}} / ifsq_storage_size_bytes{{{R}}}",
                "{{run}}",
                "Of the output's file system. Runbook: disk-nearly-full.",
                minimum=0,
                maximum=1,
            ),
        ),
    },
)

DATA = Dashboard(
    "ifsq-data",
    "iFSQ / Data",
    "Whether the workers get their batches in time.",
    "ifsq_training_data_wait_seconds_total",
    {
        "Waiting": (
            curve(
                "Share of time spent waiting",
                "percentunit",
                f"avg by (run) (rate(ifsq_training_data_wait_seconds_total{{{R}}}"
                "[$__rate_interval]))",
                "{{run}}",
                "Mean over ranks. Above a few per cent, reading limits the run: data-bound.",
                minimum=0,
            ),
            curve(
                "Ranks that wait most",
                "percentunit",
                f"topk(5, rate(ifsq_training_data_wait_seconds_total{{{R}}}[$__rate_interval]))",
                "{{run}} rank {{rank}}",
                "One rank far above the others points to its node: straggler-rank.",
                minimum=0,
            ),
            Panel(
                "Wait for a batch on rank 0",
                "s",
                tuple(
                    (
                        f"histogram_quantile({q}, sum by (run, le) (rate("
                        f"ifsq_data_batch_wait_seconds_bucket{{{R}}}[$__rate_interval])))",
                        f"{{{{run}}}} {name}",
                    )
                    for q, name in ((0.5, "median"), (0.99, "p99"))
                ),
                "A high p99 with a low median means hiccups: raise data.prefetch_batches.",
                minimum=0,
            ),
        ),
        "Throughput": (
            curve(
                "Images read per second",
                "reqps",
                f"rate(ifsq_training_samples_total{{{R}}}[$__rate_interval])",
                "{{run}}",
                "Of all workers together.",
                minimum=0,
            ),
            curve(
                "Images since the start",
                "short",
                f"ifsq_training_samples_total{{{R}}}",
                "{{run}}",
                "Of all global batches.",
                minimum=0,
            ),
            curve(
                "Unreadable images",
                "none",
                f"sum by (run) (ifsq_data_quarantined_samples_total{{{R}}})",
                "{{run}}",
                "Replaced, and named in the quarantine files of the run.",
                minimum=0,
            ),
        ),
    },
)

FLEET = Dashboard(
    "ifsq-fleet",
    "iFSQ / Fleet",
    "All runs and the nodes they are on.",
    "ifsq_process_resident_memory_bytes",
    {
        "Runs": (
            number(
                "Workers",
                "none",
                f"ifsq_training_world_size{{{R}}}",
                "Workers of each training run.",
            ),
            number(
                "Endpoints that answer",
                "none",
                f"sum by (run) (up{{{R}}})",
                "One for each node of a run.",
            ),
            number(
                "Goodput",
                "percentunit",
                f"ifsq_training_goodput_ratio{{{R}}}",
                "Time spent on steps that count, over time since submission.",
            ),
            curve(
                "What runs how",
                "none",
                f"ifsq_training_run_info{{{R}}}",
                "{{run}}: {{task}}, {{strategy}}, {{precision}}",
                "One line for each training run.",
                minimum=0,
            ),
            curve(
                "Restarts in the last hour",
                "none",
                f"increase(ifsq_training_restarts_total{{{R}}}[1h])",
                "{{run}}",
                "Runbook: restart-loop.",
                minimum=0,
            ),
            curve(
                "Since the last step",
                "s",
                f"time() - ifsq_training_last_step_timestamp_seconds{{{R}}}",
                "{{run}}",
                "Runbook: stalled-step.",
                minimum=0,
            ),
        ),
        "Nodes": (
            curve(
                "Memory by node",
                "bytes",
                f"ifsq_process_resident_memory_bytes{{{R}}}",
                "{{run}} {{instance}}",
                "Of the run's processes on a node.",
                minimum=0,
            ),
            curve(
                "GPU memory by node",
                "bytes",
                f"ifsq_process_device_memory_bytes{{{R}}}",
                "{{run}} {{instance}}",
                "Held by the run's processes on a node.",
                minimum=0,
            ),
            curve(
                "Peak GPU memory of rank 0",
                "bytes",
                f"ifsq_training_device_memory_peak_bytes{{{R}}}",
                "{{run}}",
                "Since it started.",
                minimum=0,
            ),
            curve(
                "Free storage",
                "percentunit",
                f"ifsq_storage_free_bytes{{{R}}} / ifsq_storage_size_bytes{{{R}}}",
                "{{run}}",
                "Of the run folder's file system. Runbook: disk-nearly-full.",
                minimum=0,
                maximum=1,
            ),
        ),
    },
)

DASHBOARDS = (TRAINING, TOKENIZER, PRECOMPUTE, DATA, FLEET)
