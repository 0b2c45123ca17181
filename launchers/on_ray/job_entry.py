"""What runs inside a job: the recipe that travelled in the environment."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import (
    EvaluateConfig,
    LaunchConfig,
    PrecomputeConfig,
    SampleConfig,
    TrainConfig,
)
from ifsq_train.config.load import Recipe, packed_recipe, unpacked
from ifsq_train.config.paths import with_absolute_paths
from launchers.jobs.demo import DemoConfig
from launchers.jobs.environment import read_environment
from launchers.jobs.request import WORKDIR_VARIABLE
from launchers.on_ray.errors import plain_result

_LOG_LINES = 20


def run_job() -> str:
    """Run the job this process was started for; returns a line about the result.

    Raises:
        UserError: not inside a job, or something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
    """
    recipe, launch = read_environment()
    folder = working_folder()
    if isinstance(recipe, DemoConfig):
        raise UserError("the demo is several recipes; `ifsq run-job` runs it")
    return run_recipe(with_absolute_paths(recipe, folder), launch)


def working_folder() -> Path:
    """The folder that a job's relative paths are below.

    Raises:
        UserError: it is not there on this node.
    """
    folder = Path(os.environ.get(WORKDIR_VARIABLE) or Path.cwd())
    if not folder.is_dir():
        raise UserError(
            f"{folder}, which the recipe's relative paths are below, is not a folder on this node;"
            " give a folder that all nodes share with --workdir, or absolute paths"
        )
    return folder


def run_recipe(recipe: Recipe, launch: LaunchConfig) -> str:
    """Run a recipe of any kind on a Ray cluster; returns a line about the result.

    Raises:
        UserError: something in the recipe or its data.
        TrainingFailed: the workers failed more often than allowed.
    """
    if isinstance(recipe, TrainConfig):
        return _train(recipe, launch)
    if isinstance(recipe, PrecomputeConfig):
        from launchers.on_ray.precompute import precompute_on_ray

        report = precompute_on_ray(
            recipe,
            num_actors=launch.num_workers,
            cpus_per_actor=launch.cpus_per_worker,
            gpus_per_actor=launch.gpus,
            address=launch.address,
        )
        return f"{report.rows} rows of {report.expected_rows} in {recipe.output}"
    if isinstance(recipe, SampleConfig):
        from launchers.on_ray.sample import sample_on_ray

        count = sample_on_ray(
            recipe,
            num_actors=launch.num_workers,
            cpus_per_actor=launch.cpus_per_worker,
            gpus_per_actor=launch.gpus,
            address=launch.address,
        )
        return f"{count} images in {recipe.output}"
    if isinstance(recipe, EvaluateConfig):
        return _on_a_worker(recipe, launch)
    raise UserError(f"kind '{recipe.kind}' is not for run_recipe; use `ifsq study run`")


def _train(recipe: TrainConfig, launch: LaunchConfig) -> str:
    from launchers.on_ray.failure import TrainingFailed
    from launchers.on_ray.train import train_on_ray

    try:
        result = train_on_ray(recipe, launch)
    except TrainingFailed as error:
        if error.rank is not None:
            for line in log_tail(Path(recipe.output), error.rank):
                sys.stderr.write(f"rank {error.rank} | {line}\n")
        raise
    return f"{recipe.name}: {result['steps']} steps, final loss {result['final_loss']:.6g}"


def log_tail(folder: Path, rank: int) -> list[str]:
    """Last lines of a rank's log in the run folder; empty where there is none."""
    path = folder / "logs" / f"rank-{rank:05d}.log"
    if not path.is_file():
        return []
    return path.read_text(errors="replace").splitlines()[-_LOG_LINES:]


def _on_a_worker(recipe: EvaluateConfig, launch: LaunchConfig) -> str:
    """Evaluation needs one process, on a worker: the head has neither GPU nor CPUs."""
    from launchers.on_ray.cluster import ray_session

    with ray_session(launch.address, min_cpus=1) as ray:
        task = ray.remote(num_cpus=launch.cpus_per_worker, num_gpus=launch.gpus)(_single)
        return plain_result(ray, task.remote(packed_recipe(with_absolute_paths(recipe))))


def _single(values: dict[str, Any]) -> str:
    import ray

    if not ray.get_gpu_ids():
        # Ray leaves the node's GPUs visible to tasks that were given none.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    from ifsq_train.evaluation.evaluate import evaluate

    recipe = unpacked(values, EvaluateConfig)
    return json.dumps(evaluate(recipe)["metrics"], indent=1)
