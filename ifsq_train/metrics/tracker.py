"""What a tracker is, and the run it is opened for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TrackedRun:
    """The run a tracker is opened for.

    Attributes:
        name: of the recipe.
        folder: of the run; a tracker may keep an id there, to go on with after a restart.
        recipe: JSON-able.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]


@dataclass(frozen=True)
class Shown:
    """Pictures and histograms of a step, by name.

    Attributes:
        images: uint8 [N, H, W, 3] each.
        histograms: counts int64 [K] and edges float64 [K + 1].
    """

    images: Mapping[str, NDArray[np.uint8]]
    histograms: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float64]]]


class Tracker(Protocol):
    """Receives what rank 0 of a run reports; any of its methods may raise."""

    def resume(self, step: int) -> None:
        """The run goes on after `step` optimizer steps; what was reported beyond is void."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step by name."""
        ...

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """Images uint8 [N, H, W, 3]."""
        ...

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """Counts int64 [K] between edges float64 [K + 1]."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...
