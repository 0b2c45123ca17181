"""`ifsq run-job`: what runs inside a job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from ifsq_train.config import LaunchConfig


def run_job() -> None:
    """Run the recipe of the environment; this is a job's entrypoint, not for people."""
    from ifsq_train.log import log_to_terminal
    from launchers.jobs.environment import read_environment
    from launchers.on_ray.refusal import stop_own_job

    log_to_terminal()
    try:
        recipe, launch = read_environment()
        typer.echo(run_any(recipe, launch, _working_folder()))
    except UserError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        sys.stderr.flush()
        stop_own_job(say=typer.echo)
        raise typer.Exit(2) from error


def _working_folder() -> Path:
    from launchers.jobs.request import WORKDIR_VARIABLE

    folder = Path(os.environ.get(WORKDIR_VARIABLE) or Path.cwd())
    if not folder.is_dir():
        raise UserError(
            f"{folder}, which the recipe's relative paths are below, is not a folder on this node;"
            " give a folder that all nodes share with --workdir, or absolute paths"
        )
    return folder


def run_any(recipe: Any, launch: LaunchConfig, folder: Path | None = None) -> str:
    """Run a recipe of any kind, or the demo, on Ray; returns a line about the result.

    Args:
        recipe: what to run.
        launch: shape of the worker group.
        folder: that relative paths are below; None leaves them as they are.

    Raises:
        UserError: something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
    """
    from ifsq_train.config.paths import with_absolute_paths
    from launchers.jobs.demo import DemoConfig

    if isinstance(recipe, DemoConfig):
        from launchers.demo.job import run_demo_job

        return run_demo_job(recipe, launch, folder or Path.cwd())
    from launchers.on_ray.job_entry import run_recipe

    return run_recipe(recipe if folder is None else with_absolute_paths(recipe, folder), launch)
