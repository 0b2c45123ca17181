"""Training in this process: one worker, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from ifsq_train.config import LoadingConfig, TrainConfig
from ifsq_train.config.launch import GpuCount
from ifsq_train.config.paths import with_absolute_paths
from launchers.monitoring.progress_line import follow_progress


def train_locally(
    config: TrainConfig, gpus: GpuCount = 0, loading: LoadingConfig | None = None
) -> dict[str, Any]:
    """Run a training recipe with one worker.

    Args:
        config: the recipe.
        gpus: 0 is the CPU; auto takes a GPU where there is one.
        loading: how batches are loaded ahead.

    Raises:
        UserError: something in the recipe or its data, a GPU that is not there, or decode actors.
    """
    from ifsq_train.distributed.context import InProcessContext, chosen_device
    from ifsq_train.train import run

    if loading is not None and loading.decode_actors:
        raise UserError(
            f"--loading decode_actors={loading.decode_actors} needs Ray; use --launcher ray, or 0"
        )
    config = with_absolute_paths(config)
    device = chosen_device(gpus)
    with follow_progress(Path(config.output), config):
        return run(config, InProcessContext(device=device), loading=loading)
