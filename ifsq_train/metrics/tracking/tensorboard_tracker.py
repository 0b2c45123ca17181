"""Event files for TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifsq_train.config.trackers import TensorBoardConfig
from ifsq_train.metrics.tracker import TrackedRun


class TensorBoardTracker:
    """See `metrics.tracker.Tracker`. After a restart, what was logged beyond the step that the
    run resumes from is marked as void in the new file, which TensorBoard then leaves out."""

    def __init__(self, config: TensorBoardConfig, run: TrackedRun) -> None:
        self._folder = Path(config.folder) if config.folder else run.folder / "tensorboard"
        self._recipe = run.recipe
        self._writer: Any = None

    def resume(self, step: int) -> None:
        """Begin a file."""
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1 if step else None)
        if not step:
            recipe = json.dumps(self._recipe, indent=1)
            self._writer.add_text("recipe", f"```\n{recipe}\n```", 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One tag per name."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """A grid of all of them."""
        self._writer.add_images(name, images, step, dataformats="NHWC")
        self._writer.flush()

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """Counts by bucket, as they are."""
        middle = (edges[:-1] + edges[1:]) / 2
        self._writer.add_histogram_raw(
            name,
            min=float(edges[0]),
            max=float(edges[-1]),
            num=int(counts.sum()),
            sum=float((counts * middle).sum()),
            sum_squares=float((counts * middle**2).sum()),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )
        self._writer.flush()

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


open_tracker = TensorBoardTracker
