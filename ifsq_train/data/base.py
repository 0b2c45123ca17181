"""What the training loop asks of data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from data_pipelines.order.plan import DataPlan, rank_slots
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.views import Size
from ifsq_train.data.batch import Batch


@dataclass(frozen=True)
class DataFacts:
    """What the networks trained on a dataset must know of it.

    Attributes:
        size: height and width of the views in pixels.
        tokens: the spec of a token dataset; None for images.
    """

    size: Size
    tokens: TokenSpec | None = None


@dataclass(frozen=True)
class Extras:
    """What batches of a token dataset have besides tokens and labels.

    Attributes:
        features: the stored teacher features.
        pixels: the images of the same views.
        latents: stored latents, where the dataset has them, take the place of tokens.
    """

    features: bool = False
    pixels: bool = False
    latents: bool = False


class TrainData(Protocol):
    """What the loop needs from a dataset."""

    @property
    def plan(self) -> DataPlan:
        """The order of the samples."""
        ...

    @property
    def facts(self) -> DataFacts:
        """What networks must know of it."""
        ...

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's share of global batch `step`, on the host; a pure function."""
        ...

    def describe(self) -> dict[str, Any]:
        """What was opened, for the run's record."""
        ...


def positions(plan: DataPlan, rank: int, world_size: int) -> np.ndarray:
    """int64 [B], places of a rank's share in the global batch."""
    return np.arange(*rank_slots(plan.global_batch_size, rank, world_size), dtype=np.int64)
