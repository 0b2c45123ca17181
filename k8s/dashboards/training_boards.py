"""Dashboards of a training run: training itself, and the tokenizer's code."""

from __future__ import annotations

from k8s.dashboards.panels import Dashboard, R, curve, number

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
