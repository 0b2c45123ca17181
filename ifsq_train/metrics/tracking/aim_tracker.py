"""Aim."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ifsq_train.config.trackers import AimConfig
from ifsq_train.metrics.tracker import TrackedRun
from ifsq_train.metrics.tracking.run_id import keep_id, kept_id


class AimTracker:
    """See `metrics.tracker.Tracker`. A step that a restart repeats takes the old one's place."""

    def __init__(self, config: AimConfig, run: TrackedRun) -> None:
        aim: Any = importlib.import_module("aim")
        self._aim = aim
        repo = config.repo or str(run.folder / "aim")
        if not aim.Repo.exists(repo):
            aim.Repo.from_path(repo, init=True)
        self._run: Any = aim.Run(
            run_hash=kept_id(run.folder, "aim"),
            repo=repo,
            experiment=config.experiment,
            system_tracking_interval=None,
            capture_terminal_logs=False,
            log_system_params=False,
        )
        keep_id(run.folder, "aim", lambda: self._run.hash)
        self._run.name = run.name
        self._run["recipe"] = dict(run.recipe)

    def resume(self, step: int) -> None:
        """Nothing: see above."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One metric per name."""
        for name, value in values.items():
            self._run.track(value, name=name, step=step)

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """A sequence of images."""
        shown = [self._aim.Image(Image.fromarray(image)) for image in images]
        self._run.track(shown, name=name, step=step)

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """A distribution with these buckets."""
        made = self._aim.Distribution(hist=counts, bin_range=(float(edges[0]), float(edges[-1])))
        self._run.track(made, name=name, step=step)

    def close(self) -> None:
        """Write what is left."""
        self._run.close()


open_tracker = AimTracker
