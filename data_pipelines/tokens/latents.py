"""What a row's tokens or latent columns stand for, and how latents are normalised."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

LATENT_MEAN = "latent_mean"
"""Extra column, float16 or float32 [C, h, w]: the latents, or the mean of their posterior."""
LATENT_LOGVAR = "latent_logvar"
"""Extra column of the same shape: log-variance of the posterior (vae)."""


@dataclass(frozen=True)
class DigitTable:
    """Tokens that are numbers whose digits are the levels of single channels (FSQ, LFQ).

    groups: channels of each token group; channels are numbered over all groups.
    place_values: per channel, what its digit counts for within its group's token.
    values: per channel, the latent value of each of its levels.
    """

    groups: tuple[int, ...]
    place_values: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]

    def latents(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Int64 [B, h, w, G] to float32 [B, C, h, w]."""
        latents = np.empty((len(tokens), len(self.values), *tokens.shape[1:3]), np.float32)
        for channel, (group, values) in enumerate(zip(self._group_of, self._arrays, strict=True)):
            digits = tokens[..., group] // self.place_values[channel] % len(values)
            latents[:, channel] = values[digits]
        return latents

    @cached_property
    def _group_of(self) -> list[int]:
        return np.repeat(np.arange(len(self.groups)), self.groups).tolist()

    @cached_property
    def _arrays(self) -> list[NDArray[np.float32]]:
        return [np.array(values, np.float32) for values in self.values]

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "DigitTable":
        """Read `dataclasses.asdict` back from JSON."""
        return DigitTable(
            tuple(values["groups"]),
            tuple(values["place_values"]),
            tuple(tuple(levels) for levels in values["values"]),
        )


@dataclass(frozen=True)
class LatentStatistics:
    """Of the latents of all rows, per channel; `std` is the population's.

    Where rows have a posterior (vae), these are the moments of samples drawn from it. A generator
    of latents trains on `normalize(latents)` and decodes `denormalize` of what it made.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    count: int
    """Values per channel: rows times grid cells."""

    def normalize(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Float [B, C, H, W] to mean 0 and standard deviation 1 per channel."""
        return (latents - self._per_channel(self.mean, latents)) / self._scale(latents)

    def constants(self, like: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
        """What `normalize` subtracts and divides by, [1, C, 1, 1], on the device of `like`."""
        return self._per_channel(self.mean, like), self._scale(like)

    def denormalize(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Inverse of `normalize`."""
        return latents * self._scale(latents) + self._per_channel(self.mean, latents)

    def normalized(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        """`normalize` for arrays: float32 [B, C, H, W]."""
        shape = (1, -1, 1, 1)
        mean = np.array(self.mean, np.float32).reshape(shape)
        scale = np.array([std if std > 0 else 1.0 for std in self.std], np.float32).reshape(shape)
        return (latents - mean) / scale

    def _scale(self, latents: "torch.Tensor") -> "torch.Tensor":
        # A channel that never varies has nothing to scale.
        return self._per_channel([std if std > 0 else 1.0 for std in self.std], latents)

    @staticmethod
    def _per_channel(values: Sequence[float], like: "torch.Tensor") -> "torch.Tensor":
        return like.new_tensor(values).view(1, -1, 1, 1)


@dataclass(frozen=True)
class LatentSums:
    """Sums and sums of squares per channel, float64; how statistics are collected."""

    count: int
    sums: tuple[float, ...]
    squares: tuple[float, ...]

    @staticmethod
    def of_rows(
        sums: NDArray[np.float64], squares: NDArray[np.float64], cells: int
    ) -> "LatentSums":
        """From each row's own sums, [N, C]; `cells` values per row and channel.

        A function of the rows alone, however many were encoded at a time.
        """
        count = len(sums) * cells
        totals, total_squares = sums.sum(axis=0).tolist(), squares.sum(axis=0).tolist()
        return LatentSums(count, tuple(totals), tuple(total_squares))

    @staticmethod
    def combine(parts: Sequence["LatentSums"]) -> LatentStatistics | None:
        """Statistics of all parts, added in the given order; None where there are no channels."""
        if not parts or not parts[0].sums:
            return None
        count = sum(part.count for part in parts)
        sums, squares = np.zeros(len(parts[0].sums)), np.zeros(len(parts[0].sums))
        for part in parts:
            sums += np.array(part.sums)
            squares += np.array(part.squares)
        mean = sums / count
        variance = np.maximum(squares / count - mean * mean, 0.0)
        return LatentStatistics(tuple(mean.tolist()), tuple(np.sqrt(variance).tolist()), count)
