"""Training in this process: one worker, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import LaunchConfig, TrainConfig
from ifsq_train.config.paths import with_absolute_paths
from launchers.monitoring.progress_line import follow_progress


def train_locally(
    config: TrainConfig, launch: LaunchConfig | None = None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Run a training recipe with one worker.

    Args:
        config: the recipe.
        launch: GPU, loading and allowed changes; one worker in any case.
        overwrite: remove the run that is in the folder.

    Raises:
        UserError: something in the recipe or its data, a GPU that is not there, or decode actors.
    """
    from ifsq_train.distributed.context import InProcessContext, chosen_device
    from ifsq_train.train import run
    from ifsq_train.training.preflight import preflight

    launch, loading = launch or LaunchConfig(), (launch or LaunchConfig()).loading
    if loading.decode_actors:
        raise UserError(
            f"--loading decode_actors={loading.decode_actors} needs Ray; use --launcher ray, or 0"
        )
    config = with_absolute_paths(config)
    device = chosen_device(launch.gpus_per_worker)
    finished = preflight(config, launch, overwrite=overwrite)
    if finished is not None:
        return finished
    with follow_progress(Path(config.output), config):
        context = InProcessContext(device=device)
        return run(config, context, loading=loading, allow_changes=launch.allow_changes)
