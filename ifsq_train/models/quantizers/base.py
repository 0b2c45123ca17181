"""What every bottleneck takes and gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ifsq_train.models.quantizers.usage import token_entropy_bits


@dataclass(frozen=True)
class QuantizerOutput:
    """Result of a bottleneck.

    Attributes:
        latents: float [B, C, H, W], straight-through where quantized.
        indices: int64 [B, H, W, num_groups]; zero groups for continuous bottlenecks.
        losses: scalars to add to the training loss, already weighted against each other.
        stats: detached scalars for the log.
    """

    latents: Tensor
    indices: Tensor
    losses: Mapping[str, Tensor] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class Quantizer(nn.Module, ABC):
    """A bottleneck on latents [B, C, H, W].

    Attributes:
        num_channels: C.
        codebook_sizes: entries of each token group; empty for continuous bottlenecks.
        moment_channels: channels it wants on its input (2C for a Gaussian posterior).
        measure_use: give statistics of the tokens in training mode. They cost more than
            quantizing; a training loop turns them off in steps that are not logged.
    """

    num_channels: int
    codebook_sizes: tuple[int, ...]
    measure_use: bool = True

    @property
    def moment_channels(self) -> int:
        """Channels expected on the input."""
        return self.num_channels

    def _stats(self, indices: Tensor) -> dict[str, Tensor]:
        """Scalars for the log, in training mode and if `measure_use`."""
        if not self.training or not self.measure_use:
            return {}
        return {"code_entropy": token_entropy_bits(indices, self.codebook_sizes)}

    @abstractmethod
    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize float [B, moment_channels, H, W]."""

    @abstractmethod
    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Latents float32 [B, C, H, W] of indices int64 [B, H, W, num_groups]; exact inverse."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able description that, with the weights, decides what a token means."""


_BUT_CHANNELS = (0, 2, 3)


class RunningMoments(nn.Module):
    """Mixin: running mean and biased variance of the bottleneck's input, for the log only.

    Momentum 0.1 from (0, 1) over batch and space in training mode; never used to normalise
    (released code, RunningFSQ and RunningVQ).
    """

    running_mean: Tensor
    running_var: Tensor

    def _init_moments(self, num_channels: int) -> None:
        shape = (1, num_channels, 1, 1)
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))

    def _track(self, latents: Tensor) -> None:
        """Count a batch; fp32 [B, C, H, W], detached."""
        mean = latents.mean(_BUT_CHANNELS, True)
        # Two passes: as exact as Tensor.var, which takes ten times as long on a CPU.
        var = (latents - mean).square_().mean(_BUT_CHANNELS, True)
        for running, batch in ((self.running_mean, mean), (self.running_var, var)):
            running.lerp_(batch.to(running.dtype), 0.1)
