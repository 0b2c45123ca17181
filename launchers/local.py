"""Training in this process: one worker, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifsq_train.config import TrainConfig
from ifsq_train.config.launch import GpuCount
from ifsq_train.config.paths import with_absolute_paths
from launchers.monitoring.progress_line import follow_progress


def train_locally(config: TrainConfig, gpus: GpuCount = 0) -> dict[str, Any]:
    """Run a training recipe with one worker.

    Args:
        config: the recipe.
        gpus: 0 is the CPU; auto takes a GPU where there is one.

    Raises:
        UserError: something in the recipe or its data, or a GPU that is not there.
    """
    from ifsq_train.distributed.context import InProcessContext, chosen_device
    from ifsq_train.train import run

    config = with_absolute_paths(config)
    device = chosen_device(gpus)
    with follow_progress(Path(config.output), config):
        return run(config, InProcessContext(device=device))
