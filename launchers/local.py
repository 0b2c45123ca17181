"""Training in this process: one worker, no Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ifsq_train.config import TrainConfig
from launchers.monitoring.progress_line import follow_progress


def train_locally(config: TrainConfig) -> dict[str, Any]:
    """Run a training recipe with one worker.

    Raises:
        UserError: something in the recipe or its data.
    """
    from ifsq_train.distributed.context import InProcessContext
    from ifsq_train.train import run

    with follow_progress(Path(config.output).absolute(), config):
        return run(config, InProcessContext())
