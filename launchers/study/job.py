"""A study as one job of a cluster."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig, StudyConfig
from ifsq_train.study.expand import expand
from launchers.jobs.request import STUDY_STORE
from launchers.study.run import RunOptions, run_study


def run_study_job(study: StudyConfig, launch: LaunchConfig, folder: Path) -> str:
    """Run all stages; returns a line about the result.

    With GPUs every training gets all workers of the job, without them one worker, as many at once
    as there are CPUs.

    Args:
        study: what to run.
        launch: shape of the job.
        folder: that relative paths and the store are below; all nodes share it.

    Raises:
        UserError: a fault in the study, or a stage of it failed.
    """
    each = launch if launch.gpus else launch.model_copy(update={"num_workers": 1})
    folder = folder.absolute()
    options = RunOptions(folder / STUDY_STORE, address=launch.address, launch=each, base=folder)
    summary = run_study(expand(study), options)
    if summary.failed:
        name, error = next(iter(summary.failed.items()))
        raise UserError(
            f"{study.name}: {len(summary.failed)} stages failed, {summary.blocked} were left out;"
            f" the first: {name}: {error.splitlines()[0]}"
        )
    return f"{study.name}: {summary.done} stages done, {summary.reused} found done"
