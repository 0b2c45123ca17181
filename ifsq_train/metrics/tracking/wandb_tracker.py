"""Weights & Biases. The key is WANDB_API_KEY, which only its own library reads."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifsq_train.config.trackers import WandbConfig
from ifsq_train.metrics.tracker import TrackedRun
from ifsq_train.metrics.tracking.run_id import keep_id

_STEP = "step"


class WandbTracker:
    """See `metrics.tracker.Tracker`. Values are drawn over the run's own steps, so that those which
    a restart repeats lie where they belong; W&B keeps both."""

    def __init__(self, config: WandbConfig, run: TrackedRun) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._wandb = wandb
        self._run: Any = wandb.init(
            project=config.project,
            entity=config.entity,
            name=run.name,
            id=keep_id(run.folder, "wandb", lambda: secrets.token_hex(8)),
            resume="allow",
            dir=str(run.folder),
            mode=config.mode,
            config=dict(run.recipe),
            settings=wandb.Settings(console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric=_STEP)

    def resume(self, step: int) -> None:
        """Nothing: see above."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One metric per name."""
        self._run.log({_STEP: step, **values})

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """A panel of images."""
        self._run.log({_STEP: step, name: [self._wandb.Image(image) for image in images]})

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """Counts by bucket, as they are."""
        made = self._wandb.Histogram(np_histogram=(counts, edges))
        self._run.log({_STEP: step, name: made})

    def close(self) -> None:
        """Hand over what is left."""
        self._run.finish()


open_tracker = WandbTracker
