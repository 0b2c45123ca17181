"""Dashboards of what surrounds training: precompute, data, the fleet."""

from __future__ import annotations

from k8s.dashboards.panels import Dashboard, Panel, R, curve, number

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
                "{{namespace}} {{run}}",
                "Of all encoders together.",
                minimum=0,
            ),
            curve(
                "Queue",
                "none",
                f"ifsq_precompute_pending_items{{{R}}}",
                "{{namespace}} {{run}}",
                "Shards that are not published yet.",
                minimum=0,
            ),
            Panel(
                "Encoders and lost work",
                "none",
                (
                    (f"ifsq_precompute_encoders{{{R}}}", "{{namespace}} {{run}} encoders"),
                    (
                        f"ifsq_precompute_retries_total{{{R}}}",
                        "{{namespace}} {{run}} given out again",
                    ),
                ),
                "Shards are given out again when the encoder that had them was lost.",
                minimum=0,
            ),
            curve(
                "Where encoders spend their time",
                "none",
                f"rate(ifsq_precompute_stage_seconds_total{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}} {{stage}}",
                "Encoders in each stage: waiting for work, pixels or storage; encoding.",
                minimum=0,
            ),
            curve(
                "Shards published",
                "none",
                f"ifsq_precompute_items_total{{{R}}}",
                "{{namespace}} {{run}}",
                "Since this start.",
                minimum=0,
            ),
            curve(
                "Unreadable images",
                "none",
                f"ifsq_data_quarantined_samples_total{{{R}}}",
                "{{namespace}} {{run}}",
                "Replaced, and named in the quarantine file.",
                minimum=0,
            ),
            curve(
                "Free space",
                "percentunit",
                f"ifsq_storage_free_bytes{{{R}}} / ifsq_storage_size_bytes{{{R}}}",
                "{{namespace}} {{run}}",
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
                f"avg by (namespace, run) (rate(ifsq_training_data_wait_seconds_total{{{R}}}"
                "[$__rate_interval]))",
                "{{namespace}} {{run}}",
                "Mean over ranks. Above a few per cent, reading limits the run: data-bound.",
                minimum=0,
            ),
            curve(
                "Ranks that wait most",
                "percentunit",
                f"topk(5, rate(ifsq_training_data_wait_seconds_total{{{R}}}[$__rate_interval]))",
                "{{namespace}} {{run}} rank {{rank}}",
                "One rank far above the others points to its node: straggler-rank.",
                minimum=0,
            ),
            Panel(
                "Wait for a batch on rank 0",
                "s",
                tuple(
                    (
                        f"histogram_quantile({q}, sum by (namespace, run, le) (rate("
                        f"ifsq_data_batch_wait_seconds_bucket{{{R}}}[$__rate_interval])))",
                        f"{{{{run}}}} {name}",
                    )
                    for q, name in ((0.5, "median"), (0.99, "p99"))
                ),
                "A high p99 with a low median means hiccups: raise prefetch_batches.",
                minimum=0,
            ),
        ),
        "Throughput": (
            curve(
                "Images read per second",
                "reqps",
                f"rate(ifsq_training_samples_total{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}}",
                "Of all workers together.",
                minimum=0,
            ),
            curve(
                "Images since the start",
                "short",
                f"ifsq_training_samples_total{{{R}}}",
                "{{namespace}} {{run}}",
                "Of all global batches.",
                minimum=0,
            ),
            curve(
                "Unreadable images",
                "none",
                f"sum by (namespace, run) (ifsq_data_quarantined_samples_total{{{R}}})",
                "{{namespace}} {{run}}",
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
                f"sum by (namespace, run) (up{{{R}}})",
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
                "{{namespace}} {{run}}: {{task}}, {{strategy}}, {{precision}}",
                "One line for each training run.",
                minimum=0,
            ),
            curve(
                "Restarts in the last hour",
                "none",
                f"increase(ifsq_training_restarts_total{{{R}}}[1h])",
                "{{namespace}} {{run}}",
                "Runbook: restart-loop.",
                minimum=0,
            ),
            curve(
                "Since the last step",
                "s",
                f"time() - ifsq_training_last_step_timestamp_seconds{{{R}}}",
                "{{namespace}} {{run}}",
                "Runbook: stalled-step.",
                minimum=0,
            ),
        ),
        "Nodes": (
            curve(
                "Memory by node",
                "bytes",
                f"ifsq_process_resident_memory_bytes{{{R}}}",
                "{{namespace}} {{run}} {{instance}}",
                "Of the run's processes on a node.",
                minimum=0,
            ),
            curve(
                "GPU memory by node",
                "bytes",
                f"ifsq_process_device_memory_bytes{{{R}}}",
                "{{namespace}} {{run}} {{instance}}",
                "Held by the run's processes on a node.",
                minimum=0,
            ),
            curve(
                "Peak GPU memory of rank 0",
                "bytes",
                f"ifsq_training_device_memory_peak_bytes{{{R}}}",
                "{{namespace}} {{run}}",
                "Since it started.",
                minimum=0,
            ),
            curve(
                "Free storage",
                "percentunit",
                f"ifsq_storage_free_bytes{{{R}}} / ifsq_storage_size_bytes{{{R}}}",
                "{{namespace}} {{run}}",
                "Of the run folder's file system. Runbook: disk-nearly-full.",
                minimum=0,
                maximum=1,
            ),
        ),
    },
)
