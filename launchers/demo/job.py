"""The whole demo inside a job, on the job's own Ray cluster."""

from __future__ import annotations

from pathlib import Path

from ifsq_train.config import LaunchConfig
from launchers.demo.pipeline import run_demo
from launchers.jobs.demo import DemoConfig


def run_demo_job(config: DemoConfig, launch: LaunchConfig, folder: Path) -> str:
    """Run the demo; returns a line about the result.

    Args:
        config: what to run.
        launch: shape of the worker group.
        folder: that relative paths are below.

    Raises:
        UserError: missing or unusable images, or a folder used for another demo.
        TrainingFailed: a training failed more often than it is restarted.
    """
    steps = [f"steps={config.steps}"] if config.steps is not None else []
    result = run_demo(
        folder / config.output,
        folder / config.images if config.images is not None else None,
        launch.num_workers,
        {"tokenizer": steps, "generator": steps},
        launch,
    )
    return f"report: {config.output}/report.html ({result['wall_seconds']:.0f} s)"
