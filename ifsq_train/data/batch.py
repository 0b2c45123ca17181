"""The batch that a training step receives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor


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
        draws: random numbers of these samples that were made while the batch was loaded, by name;
            see `BatchRandom.drawn`.
    """

    inputs: Tensor
    labels: Tensor
    positions: np.ndarray
    features: Tensor | None = None
    images: Tensor | None = None
    draws: dict[str, Tensor] = field(default_factory=dict)

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
        draws = {name: change(value) for name, value in self.draws.items()}
        return replace(
            self, **{name: change(value) for name, value in tensors.items()}, draws=draws
        )
