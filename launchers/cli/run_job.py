"""`ifsq run-job`: what runs inside a job."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from ifsq_train.config import LaunchConfig
    from ifsq_train.config.load import Recipe
    from launchers.jobs.demo import DemoConfig


def run_job() -> None:
    """Run the recipe of the environment; this is a job's entrypoint, not for people."""
    from ifsq_train.log import log_to_terminal
    from launchers.on_ray.refusal import stop_own_job

    log_to_terminal()
    try:
        typer.echo(_run_what_was_sent())
    except UserError as error:
        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        sys.stderr.flush()
        stop_own_job(say=typer.echo)
        raise typer.Exit(2) from error


def _run_what_was_sent() -> str:
    from ifsq_train.config import StudyConfig
    from launchers.jobs.demo import DemoConfig
    from launchers.jobs.environment import read_environment
    from launchers.on_ray.job_entry import run_job as run_one_recipe
    from launchers.on_ray.job_entry import working_folder

    recipe, launch = read_environment()
    if isinstance(recipe, DemoConfig | StudyConfig):
        return run_any(recipe, launch, working_folder())
    return run_one_recipe()


def run_any(recipe: Recipe | DemoConfig, launch: LaunchConfig, folder: Path) -> str:
    """Run a recipe of any kind, a study or the demo, on Ray; returns a line about the result.

    Args:
        recipe: what to run.
        launch: shape of the worker group.
        folder: that relative paths of the demo and of studies are below.

    Raises:
        UserError: something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
    """
    from ifsq_train.config import StudyConfig
    from launchers.jobs.demo import DemoConfig

    if isinstance(recipe, StudyConfig):
        from launchers.study.job import run_study_job

        return run_study_job(recipe, launch, folder)
    if isinstance(recipe, DemoConfig):
        from launchers.demo.job import run_demo_job

        return run_demo_job(recipe, launch, folder)
    from launchers.on_ray.job_entry import run_recipe

    return run_recipe(recipe, launch)
