"""Dashboards of a training run: training itself, and the tokenizer's code."""

from __future__ import annotations

from k8s.dashboards.panels import BLUE, GREEN, RED, YELLOW, Dashboard, R, curve, number

TRAINING = Dashboard(
    "ifsq-training",
    "iFSQ / Training",
    "Losses, speed and safety of training runs.",
    "ifsq_training_step",
    {
        "Overview": (
            number(
                "Firing alerts",
                "none",
                "count by (namespace, run)"
                f' (ALERTS{{alertname=~"Ifsq.+", alertstate="firing", {R}}})'
                f" or max by (namespace, run) (ifsq_training_step{{{R}}}) * 0",
                "Alerts of the chosen runs. The dashboard Runbooks says what to do.",
                ((None, GREEN), (1, RED)),
            ),
            number(
                "State",
                "none",
                f"max by (namespace, run) (ifsq_training_step{{{R}}}"
                f" >= bool ifsq_training_planned_steps{{{R}}})"
                f" + 2 * (max by (namespace, run) (time()"
                f" - ifsq_training_last_step_timestamp_seconds{{{R}}}) > bool 300)",
                "Trains; has done its last step; or has not done a step for five minutes.",
                words=(
                    ("0", "trains", GREEN),
                    ("1", "finished", BLUE),
                    ("2", "no steps", RED),
                    ("3", "finished", BLUE),
                ),
            ),
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
                "Time spent on steps that count, over time since submission. Runbook: low-goodput.",
                ((None, RED), (0.5, YELLOW), (0.8, GREEN)),
            ),
            number(
                "Goodput of the last half hour",
                "percentunit",
                f"deriv(ifsq_training_useful_seconds{{{R}}}[30m])",
                "Part of the last 30 minutes that went into steps that count.",
                ((None, RED), (0.5, YELLOW), (0.8, GREEN)),
            ),
        ),
        "Learning": (
            curve(
                "Loss",
                "none",
                f"ifsq_training_loss{{{R}}}",
                "{{namespace}} {{run}} {{term}}",
                "Mean over the global batch, by term. Runbook: loss-nan-or-spike.",
            ),
            curve(
                "Gradient norm",
                "none",
                f"ifsq_training_gradient_norm{{{R}}}",
                "{{namespace}} {{run}} {{network}}",
                "Before clipping. It often rises before the loss does.",
            ),
            curve(
                "Learning rate",
                "none",
                f"ifsq_training_learning_rate{{{R}}}",
                "{{namespace}} {{run}} {{network}}",
                "Of the last step, by network.",
            ),
        ),
        "Speed": (
            curve(
                "Images per second",
                "reqps",
                f"rate(ifsq_training_samples_total{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}}",
                "Of all workers together.",
                minimum=0,
            ),
            curve(
                "Tokens per second",
                "reqps",
                f"rate(ifsq_training_tokens_total{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}}",
                "Tokens, or latent positions of a tokenizer, of all workers together.",
                minimum=0,
            ),
            curve(
                "Model FLOPs utilisation",
                "percentunit",
                f"ifsq_training_model_flops_utilisation_ratio{{{R}}}",
                "{{namespace}} {{run}}",
                "Over the dense bf16 peak; only on GPUs whose peak is known.",
                minimum=0,
                maximum=1,
            ),
            curve(
                "Time of a step",
                "s",
                f"rate(ifsq_training_step_seconds_sum{{{R}}}[$__rate_interval])"
                f" / rate(ifsq_training_step_seconds_count{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}}",
                "Mean over logged steps, waiting for data included.",
                minimum=0,
            ),
            curve(
                "Where the time goes",
                "percentunit",
                f"rate(ifsq_training_phase_seconds_total{{{R}}}[$__rate_interval])",
                "{{namespace}} {{run}} {{phase}}",
                "Share of wall time on rank 0, by phase of the step.",
                minimum=0,
            ),
            curve(
                "Waiting for data",
                "percentunit",
                f"avg by (namespace, run) (rate(ifsq_training_data_wait_seconds_total{{{R}}}"
                "[$__rate_interval]))",
                "{{namespace}} {{run}}",
                "Share of wall time, mean over ranks. Runbook: data-bound.",
                minimum=0,
            ),
        ),
        "Ranks": (
            curve(
                "Forward passes of the slowest ranks",
                "percentunit",
                "topk by (namespace, run) (5, rate("
                f'ifsq_training_pass_seconds_total{{direction="forward", {R}}}[$__rate_interval]))',
                "{{namespace}} {{run}} rank {{rank}}",
                "Part of the time; all ranks do the same work. Runbook: straggler-rank.",
                minimum=0,
            ),
            curve(
                "Waiting for other ranks",
                "percentunit",
                "topk by (namespace, run) (5,"
                f" namespace_run_rank:ifsq_training_collective_wait:ratio_rate10m{{{R}}})",
                "{{namespace}} {{run}} rank {{rank}}",
                "Part of the time in backward passes, estimated from the forward passes: ranks that"
                " do not wait are the slow ones.",
                minimum=0,
            ),
            curve(
                "Data wait of the slowest ranks",
                "percentunit",
                "topk by (namespace, run) (5, rate("
                f"ifsq_training_data_wait_seconds_total{{{R}}}[$__rate_interval]))",
                "{{namespace}} {{run}} rank {{rank}}",
                "Five ranks that wait most for data. Runbook: straggler-rank.",
                minimum=0,
            ),
        ),
        "Safety": (
            curve(
                "Age of the last checkpoint",
                "s",
                f"time() - ifsq_training_checkpoint_last_success_timestamp_seconds{{{R}}}",
                "{{namespace}} {{run}}",
                "This much work would be lost now. Runbook: checkpoint-too-old.",
                minimum=0,
            ),
            curve(
                "Time a checkpoint holds up training",
                "s",
                f"ifsq_training_checkpoint_seconds_sum{{{R}}}"
                f" / ifsq_training_checkpoint_seconds_count{{{R}}}",
                "{{namespace}} {{run}}",
                "Mean since the workers started; writing goes on in the background.",
                minimum=0,
            ),
            curve(
                "Restarts",
                "none",
                f"ifsq_training_restarts_total{{{R}}}",
                "{{namespace}} {{run}}",
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
                "{{namespace}} {{run}}",
                "Of the tokens of a batch, in bits; log2 of the codebook size is the most.",
                minimum=0,
            ),
            curve(
                "Entropy by channel",
                "bits",
                f"ifsq_tokenizer_digit_entropy{{{R}}}",
                "{{namespace}} {{run}} {{channel}}",
                "log2 of a channel's levels is the most; far below, the channel is hardly used.",
                minimum=0,
            ),
            curve(
                "Dead levels by channel",
                "none",
                f"ifsq_tokenizer_dead_levels{{{R}}}",
                "{{namespace}} {{run}} {{channel}}",
                "Levels that no position of the batch uses. Runbook: dead-levels.",
                minimum=0,
            ),
        ),
        "Before the bound": (
            curve(
                "Mean by channel",
                "none",
                f"ifsq_tokenizer_prebound_mean{{{R}}}",
                "{{namespace}} {{run}} {{channel}}",
                "Running mean; should stay near 0.",
            ),
            curve(
                "Variance by channel",
                "none",
                f"ifsq_tokenizer_prebound_variance{{{R}}}",
                "{{namespace}} {{run}} {{channel}}",
                "Running variance; the bound's slope is meant for values near 1.",
                minimum=0,
            ),
            curve(
                "Terms of the loss",
                "none",
                f'ifsq_training_loss{{{R}, term!="loss"}}',
                "{{namespace}} {{run}} {{term}}",
                "By term, where the run has it.",
            ),
        ),
    },
)
