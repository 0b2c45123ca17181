"""The seam between the loop and what is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ifsq_train.randomness import BatchRandom


@dataclass(frozen=True)
class Batch:
    """A worker's share of a global batch, or a part of it.

    Attributes:
        inputs: images float32 [B, 3, H, W] in [-1, 1], tokens int64 [B, T] or [B, T, G], or
            stored latents float32 [B, C, h, w].
        labels: int64 [B], -1 where a sample has none.
        positions: int64 [B], positions in the global batch.
        features: stored teacher features [B, T, Z] of the same views, where asked for.
        images: pixels of the same views, float32 [B, 3, H, W], where `inputs` has not them but a
            teacher wants them.
    """

    inputs: Tensor
    labels: Tensor
    positions: np.ndarray
    features: Tensor | None = None
    images: Tensor | None = None

    def __len__(self) -> int:
        return len(self.positions)

    def pinned(self) -> Batch:
        """Page-locked, so that the copy to the GPU can overlap with computing.

        What a decoder made on the GPU stays there.
        """
        return self._map(lambda tensor: tensor if tensor.is_cuda else tensor.pin_memory())

    def to(self, device: torch.device) -> Batch:
        """On a device; the copy from pinned memory is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def part(self, index: int, count: int) -> Batch:
        """The index-th of `count` near-equal consecutive parts, empty where they run out."""
        first, last = (i * len(self) // count for i in (index, index + 1))
        part = slice(first, last)
        return replace(self._map(lambda tensor: tensor[part]), positions=self.positions[part])

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
        return replace(self, **{name: change(value) for name, value in tensors.items()})


class Autocast(Protocol):
    """What a loss may ask of the engine."""

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the run, for calls of bare networks and losses."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a task may know of the step it computes a loss for.

    Attributes:
        step: optimizer step, from 0.
        random: draws tied to the samples of this batch.
        share: weight of this micro-batch's mean such that the mean over ranks of the sum over
            micro-batches is the mean over the global batch; 1 where all parts are equal and
            there is one micro-batch.
        num_micro_batches: micro-batches this update is split into.
        strategy: for its autocast.
        logged: this step's metrics are looked at; in others a task may leave out dear ones.
    """

    step: int
    random: BatchRandom
    share: float
    num_micro_batches: int
    strategy: Autocast
    logged: bool = True


@dataclass(frozen=True)
class LossOutput:
    """Result of one forward pass.

    Attributes:
        loss: scalar whose gradient is wanted; its value need not be the loss.
        metrics: detached scalars, means over the micro-batch; has ``loss``.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class TrainTask(Protocol):
    """Which networks there are, which of them a step updates, and with what loss."""

    def modules(self) -> dict[str, nn.Module]:
        """Trainable networks by name."""
        ...

    def auxiliary(self) -> dict[str, nn.Module]:
        """Frozen networks a loss uses; moved to the device, never trained or saved."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts a checkpoint records, so that its networks can be built again."""
        ...

    def updates(self, step: int) -> tuple[str, ...]:
        """Networks to update in this step, in order."""
        ...

    def averaged(self) -> tuple[str, ...]:
        """Networks of which an exponential moving average is kept."""
        ...

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """Loss of one micro-batch for the update of network `update`."""
        ...
