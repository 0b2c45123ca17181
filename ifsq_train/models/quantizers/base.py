"""What every bottleneck takes and gives."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ifsq_train.models.quantizers.usage import token_entropy_bits

CONTINUOUS_BITS = 16.0
"""Bits counted per channel of a latent that is not quantized, as the paper counts."""


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


class Digits(NamedTuple):
    """How tokens become latents channel by channel, for a reader that has no quantizer.

    Attributes:
        groups: channels of each token group; channels are numbered over all groups.
        place_values: per channel, what its digit counts for within its group's token.
        values: per channel, the latent value of each of its levels.
    """

    groups: tuple[int, ...]
    place_values: tuple[int, ...]
    values: tuple[tuple[float, ...], ...]


class Quantizer(nn.Module, ABC):
    """A bottleneck on latents [B, C, H, W].

    It owns what is known of its tokens: how it is built from a recipe (`from_config`) and from
    what a token dataset stores (`from_spec`), its stored form (`spec`), its levels and digits.

    Attributes:
        num_channels: C.
        codebook_sizes: entries of each token group; empty for continuous bottlenecks.
        level_counts: levels per channel; None where tokens are not made of channels' levels.
        has_posterior: latents have a variance (see `posterior`).
        moment_channels: channels it wants on its input (2C for a Gaussian posterior).
        measure_use: give statistics of the tokens in training mode. They cost more than
            quantizing; a training loop turns them off in steps that are not logged.
    """

    num_channels: int
    codebook_sizes: tuple[int, ...]
    level_counts: tuple[int, ...] | None = None
    has_posterior: bool = False
    measure_use: bool = True

    @classmethod
    @abstractmethod
    def from_config(cls, config: Any) -> Quantizer:
        """The quantizer a recipe describes; `config` is the checked part of the recipe."""

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Quantizer | None:
        """The quantizer that `spec` describes, for decoding only.

        None where the description is not enough, because the codebook is learned: then the
        tokenizer's weights are needed. Subclasses whose spec says everything override this.
        """
        del spec
        return None

    @property
    def moment_channels(self) -> int:
        """Channels expected on the input."""
        return self.num_channels

    @property
    def latent_bits(self) -> float:
        """Bits of one position of the latent: those of its tokens, `CONTINUOUS_BITS` without.

        What studies count compression with; override it where a quantizer is counted otherwise.
        """
        if not self.codebook_sizes:
            return CONTINUOUS_BITS * self.num_channels
        return sum(math.log2(size) for size in self.codebook_sizes)

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
        """Latents float32 [B, C, H, W] of indices int64 [B, H, W, num_groups]; exact inverse.

        Raises:
            ValueError: an index outside its codebook (on a GPU the device's own assertion).
        """

    def check_indices(self, indices: Tensor) -> None:
        """Refuse indices [..., num_groups] outside their codebooks; no wait for a GPU.

        Raises:
            ValueError: there are some; on a GPU the device asserts.
        """
        if torch.compiler.is_compiling():
            return
        most = [min(size, 2**63 - 1) for size in self.codebook_sizes]
        sizes = torch.tensor(most, device=indices.device)
        outside = (indices < 0) | (indices >= sizes)
        if indices.device.type == "cuda":
            torch._assert_async(~outside.any())
        elif bool(outside.any()):
            raise ValueError(
                f"token {int(indices[outside][0])} is outside the codebooks"
                f" {list(self.codebook_sizes)}; the tokens are of another tokenizer or damaged"
            )

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """JSON-able description that, with the weights, decides what a token means.

        ``kind`` names the class that `from_spec` is called on.
        """

    def deciding_buffers(self) -> dict[str, Tensor]:
        """Buffers that decide which tokens come out; part of a tokenizer's fingerprint."""
        return {}

    def digit_table(self) -> Digits | None:
        """How tokens become latents without this network; None where a network is needed."""
        return None

    def indices_to_digits(self, indices: Tensor) -> Tensor:
        """Levels int64 [B, H, W, C] of indices [B, H, W, num_groups], if there are `level_counts`.

        Raises:
            ValueError: tokens are not made of channels' levels.
        """
        del indices
        raise ValueError(f"{type(self).__name__} has no levels per channel")

    def posterior(self, moments: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and log-variance of a continuous bottleneck, fp32 [B, C, H, W] each.

        The log-variance is None where there is none (an autoencoder).

        Args:
            moments: the bottleneck's input, float [B, moment_channels, H, W].

        Raises:
            ValueError: the bottleneck has tokens.
        """
        del moments
        raise ValueError(f"{type(self).__name__} has tokens, not a posterior")

    def loss_factor(self, name: str, step: int) -> float:
        """What the loss `name` of `QuantizerOutput.losses` is multiplied by at a step (from 0)."""
        del name, step
        return 1.0


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
