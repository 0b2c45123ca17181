"""Finite scalar quantization, original and improved (paper section 3, Algorithm 1).

Each channel is bounded, scaled and rounded to one of its levels. iFSQ's bound is
``2 sigmoid(1.6 z) - 1``; with 2.0 in place of 1.6 it is exactly tanh, the original FSQ.
Bound and rounding are in fp32 whatever autocast says: in bf16 one token in ten would differ.
Indices are integer arithmetic, exact up to 2**63 codes; in fp32 they go wrong beyond 2**24.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from ifsq_train.models.plain import plain_paths
from ifsq_train.models.quantizers.base import Digits, Quantizer, QuantizerOutput, RunningMoments
from ifsq_train.models.quantizers.rounding import (
    Rounded,
    Scale,
    StraightThrough,
    bound_and_round,
    mixed_radix,
    scale_of,
)
from ifsq_train.models.quantizers.usage import count_levels, level_entropies_bits

_SHIFTED_EPS = 1e-3


class FSQ(Quantizer, RunningMoments):
    """FSQ and iFSQ.

    Args:
        levels: levels per channel, each >= 2 (odd for the simple bound).
        alpha: slope of the bound ``2 sigmoid(alpha z) - 1``; 1.6 is iFSQ, 2.0 is tanh.
        bound: ``simple`` (paper) or ``shifted`` (original FSQ: tanh with an offset that also
            allows even levels; `alpha` is not used).
        cells: ``paper`` scales by (L-1)/2, so the two end levels have cells of half width;
            ``equal_width`` scales by L/2 and clamps.
        digit_order: ``little``: channel 0 is least significant (released code and
            checkpoints); ``big``: it is most significant (paper Eq. 5).
        groups: channels per token group, summing to the number of channels; None is one group.
        standardize: bring every channel of the input to mean 0 and deviation 1 before the bound:
            by the batch (of all workers) in training mode, by its running statistics otherwise.
        training: ``round`` with a straight-through gradient, or ``noise``: in training mode the
            bounded latents get uniform noise as wide as a cell (torch's global generator) and are
            not rounded. Tokens are rounded latents either way.
        track_statistics: in training mode keep running input moments and give, as stats, these
            and how the levels are used.

    Raises:
        ValueError: levels, bound and groups that do not go together.
    """

    levels: Tensor
    radix: Tensor
    level_counts: tuple[int, ...]  # pyright: ignore

    def __init__(
        self,
        levels: Sequence[int],
        *,
        alpha: float = 1.6,
        bound: Literal["simple", "shifted"] = "simple",
        cells: Literal["paper", "equal_width"] = "paper",
        digit_order: Literal["little", "big"] = "little",
        groups: Sequence[int] | None = None,
        standardize: bool = False,
        training: Literal["round", "noise"] = "round",
        track_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.level_counts = tuple(int(level) for level in levels)  # pyright: ignore
        self.groups = tuple(groups) if groups is not None else (len(self.level_counts),)
        self.alpha, self.bound_kind, self.cells = float(alpha), bound, cells
        self.digit_order = digit_order
        self.num_channels = len(self.level_counts)
        self._check()
        self._group_levels = self._split(self.level_counts)
        self.codebook_sizes = tuple(math.prod(part) for part in self._group_levels)
        self._noisy = training == "noise"
        # A batch norm without weights: the engines make every one of them see all workers.
        self.norm = nn.BatchNorm2d(self.num_channels, affine=False) if standardize else None
        self._track_statistics = track_statistics
        if track_statistics:
            self._init_moments(self.num_channels)
        self.register_buffer("levels", torch.tensor(self.level_counts), persistent=False)
        radix = self._radix()
        self.register_buffer("radix", torch.tensor(radix), persistent=False)
        largest = max(self.codebook_sizes)
        exact = torch.float32 if largest <= 2**24 else torch.float64
        self._exact = exact if largest <= 2**53 else torch.int64
        middle = [
            level // 2 * weight for level, weight in zip(self.level_counts, radix, strict=True)
        ]
        # Scalars on the CPU, as in `Scale`.
        self._offsets = [torch.tensor(sum(part), device="cpu") for part in self._split(middle)]
        self._groups_alike = len(set(self._group_levels)) == 1
        alike = len(set(self.level_counts)) == 1 and bound == "simple"
        self._scale = (
            scale_of(self.level_counts[0], self.alpha, equal_width=cells == "equal_width")
            if alike
            else None
        )

    @classmethod
    def from_config(cls, config: Any) -> FSQ:
        """See Quantizer.from_config; keeps statistics for the log."""
        return cls(
            config.levels,
            alpha=config.slope,
            bound=config.bound,
            cells=config.cells,
            digit_order=config.digit_order,
            groups=config.factorized_channels,
            standardize=config.standardize,
            training=config.training,
            track_statistics=True,
        )

    @classmethod
    @override
    def from_spec(cls, spec: Mapping[str, Any]) -> FSQ:
        return cls(
            spec["levels"],
            alpha=spec["alpha"],
            bound=spec["bound"],
            cells=spec["cells"],
            digit_order=spec["digit_order"],
            groups=spec["groups"],
            standardize=spec.get("standardize", False),
            training=spec.get("training", "round"),
        )

    def _check(self) -> None:
        if min(self.level_counts) < 2:
            raise ValueError(f"levels={self.level_counts}: each must be at least 2")
        even = [level for level in self.level_counts if level % 2 == 0]
        if self.bound_kind == "simple" and even:
            raise ValueError(
                f"levels={self.level_counts}: the simple bound needs odd levels;"
                " use 2**K + 1 or bound='shifted'"
            )
        if self.bound_kind == "shifted" and self.cells != "paper":
            raise ValueError("cells='equal_width' needs bound='simple'")
        if sum(self.groups) != self.num_channels:
            raise ValueError(f"groups={self.groups} must sum to {self.num_channels} channels")
        if max(math.prod(part) for part in self._split(self.level_counts)) >= 2**63:
            raise ValueError(
                f"levels={self.level_counts}: more than 2**63 codes in a group; use more groups"
            )

    def _split(self, values: Sequence[int]) -> list[tuple[int, ...]]:
        ends = list(accumulate(self.groups))
        return [
            tuple(values[end - size : end]) for end, size in zip(ends, self.groups, strict=True)
        ]

    def _radix(self) -> list[int]:
        """Weight of each channel's digit within its group."""
        weights: list[int] = []
        for part in self._split(self.level_counts):
            ordered = part if self.digit_order == "little" else part[::-1]
            place = list(accumulate(ordered[:-1], mul, initial=1))
            weights += place if self.digit_order == "little" else place[::-1]
        return weights

    def _per_channel(self, values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)

    def scaled(self, latents: Tensor) -> Tensor:
        """Bounded latents on the scale where levels are integers; fp32 [B, C, H, W]."""
        z = latents.float()
        levels = self._per_channel(self.levels).to(z.dtype)
        if self.bound_kind == "simple":
            y = 2.0 * torch.sigmoid(self.alpha * z) - 1.0
            return y * ((levels - 1.0 if self.cells == "paper" else levels) / 2.0)
        half = (levels - 1.0) * (1.0 + _SHIFTED_EPS) / 2.0
        offset = torch.where(self._per_channel(self.levels) % 2 == 0, 0.5, 0.0)
        return torch.tanh(z + torch.atanh(offset / half)) * half - offset

    def forward(self, latents: Tensor) -> QuantizerOutput:
        """Quantize float [B, C, H, W]; latents come back in fp32, in [-1, 1]."""
        # Nothing here is on autocast's list, so from .float() on all of it is in fp32.
        latents = latents.float()
        if self.norm is not None:
            self._track_if_training(latents.detach())
            latents = self.norm(latents)
        if self._noisy and self.training:
            codes, indices = self._perturb(latents)
        elif self.bound_kind == "simple" and not (plain_paths() or torch.compiler.is_compiling()):
            codes, indices = StraightThrough.apply(latents, self._quantize)  # pyright: ignore
        else:
            self._track_unless_done(latents.detach())
            codes, levels = self._round_plainly(latents)
            indices = self._levels_to_indices(levels)
        stats = self._stats(indices)
        if stats and self._track_statistics:
            stats |= self._channel_stats(indices)
        return QuantizerOutput(codes, indices, stats=stats)

    def _track_if_training(self, latents: Tensor) -> None:
        if self._track_statistics and self.training:
            self._track(latents)

    def _track_unless_done(self, latents: Tensor) -> None:
        """Moments are those of the input: before it is standardized."""
        if self.norm is None:
            self._track_if_training(latents)

    def _perturb(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Codes with noise in place of rounding, float32 [B, C, H, W], and the rounded indices."""
        self._track_unless_done(latents.detach())
        half = self._per_channel(self.levels // 2).to(latents.dtype)
        _, levels = self._round_plainly(latents)
        scaled = self.scaled(latents)
        noise = torch.rand_like(scaled) - 0.5
        return (scaled + noise) / half, self._levels_to_indices(levels)

    def _quantize(self, latents: Tensor) -> tuple[Rounded, Tensor]:
        """Everything but the gradient, with the simple bound."""
        self._track_unless_done(latents)
        rounded = bound_and_round(latents, self._scale or self._scale_by_channel())
        return rounded, self._levels_to_indices(rounded.levels)

    def _scale_by_channel(self) -> Scale:
        levels = self._per_channel(self.levels)
        return scale_of(levels, self.alpha, equal_width=self.cells == "equal_width")

    def _round_plainly(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and levels as whole numbers around zero; both float32 [B, C, H, W]."""
        half = self._per_channel(self.levels // 2).to(latents.dtype)
        scaled = self.scaled(latents)
        rounded = scaled.detach().round()
        if self.cells == "equal_width":
            rounded = rounded.clamp(-half, half)
        # In this order the value is exactly the rounded one, the derivative that of scaled.
        return (rounded + (scaled - scaled.detach())) / half, rounded

    @torch.no_grad()
    def _channel_stats(self, indices: Tensor) -> dict[str, Tensor]:
        """Scalars of this batch for the log, named ``what/channel``."""
        digits = self.indices_to_digits(indices).permute(0, 3, 1, 2)
        counts = count_levels(digits, self.level_counts)
        padding = max(self.level_counts) - self.levels
        per_channel = {
            "digit_entropy": level_entropies_bits(counts),
            "dead_levels": ((counts == 0).sum(1) - padding).float(),
            "prebound_mean": self.running_mean.flatten().float().clone(),
            "prebound_variance": self.running_var.flatten().float().clone(),
        }
        return {
            f"{name}/{channel}": value
            for name, values in per_channel.items()
            for channel, value in enumerate(values.unbind())
        }

    def _levels_to_indices(self, rounded: Tensor) -> Tensor:
        """Indices int64 [B, H, W, num_groups] of levels around zero, float32 [B, C, H, W].

        Sums of whole numbers, in the narrowest type that holds the whole codebook exactly.
        """
        rounded = rounded.to(self._exact)
        parts, shifts = self._group_levels, self._offsets
        if len(parts) == 1:
            sums = self._join(rounded.unbind(1), parts[0]) + shifts[0]
            return sums.to(torch.int64).unsqueeze(-1)
        if self._groups_alike:
            # All groups at once: a group's channels lie next to each other.
            batch, _, height, width = rounded.shape
            grouped = rounded.view(batch, len(parts), len(parts[0]), height, width)
            sums = self._join(grouped.unbind(2), parts[0]) + shifts[0]
        else:
            groups = zip(rounded.split(self.groups, 1), parts, shifts, strict=True)
            joined = [self._join(own.unbind(1), part) + shift for own, part, shift in groups]
            sums = torch.stack(joined, 1)
        return sums.to(torch.int64).permute(0, 2, 3, 1)

    def _join(self, digits: Sequence[Tensor], levels: Sequence[int]) -> Tensor:
        """Digits of one group to one number."""
        if self.digit_order == "big":
            digits, levels = digits[::-1], levels[::-1]
        return mixed_radix(digits, levels)

    def indices_to_digits(self, indices: Tensor) -> Tensor:
        """Digits int64 [B, H, W, C] in 0..L-1 of indices int64 [B, H, W, num_groups]."""
        groups = indices.repeat_interleave(torch.tensor(self.groups, device=indices.device), -1)
        return groups // self.radix % self.levels

    @override
    def indices_to_latents(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        centred = self.indices_to_digits(indices) - self.levels // 2
        codes = centred.to(torch.float32) / (self.levels // 2).to(torch.float32)
        return codes.permute(0, 3, 1, 2).contiguous()

    @property
    def latent_bits(self) -> float:
        """Bits of one position, counted as the paper does: K per channel for 2**K + 1 levels.

        An odd number of levels L counts log2(L - 1), an even number log2(L).
        """
        return sum(math.log2(level - level % 2) for level in self.level_counts)

    @override
    def spec(self) -> dict[str, Any]:
        # Options are named only where they are used, so that fingerprints stay.
        more: dict[str, Any] = {} if self.norm is None else {"standardize": True}
        if self._noisy:
            more["training"] = "noise"
        return {
            "kind": "fsq",
            "levels": list(self.level_counts),
            "alpha": self.alpha,
            "bound": self.bound_kind,
            "cells": self.cells,
            "digit_order": self.digit_order,
            "groups": list(self.groups),
            **more,
        }

    @override
    def deciding_buffers(self) -> dict[str, Tensor]:
        if self.norm is None:
            return {}
        assert self.norm.running_mean is not None
        assert self.norm.running_var is not None
        return {"norm.mean": self.norm.running_mean, "norm.variance": self.norm.running_var}

    @override
    def digit_table(self) -> Digits:
        levels = self.levels.tolist()
        half = [level // 2 for level in levels]
        values = tuple(
            tuple((torch.arange(count) - middle).div(middle).tolist())
            for count, middle in zip(levels, half, strict=True)
        )
        return Digits(self.groups, tuple(self.radix.tolist()), values)


class ProjectedFSQ(nn.Module):
    """FSQ on a learned projection, with several codebooks side by side (released fsq.py).

    Args:
        dim: input channels.
        quantizer: FSQ over ``num_codebooks`` times fewer channels than the projection has.
        num_codebooks: independent codebooks sharing the quantizer.
    """

    def __init__(self, dim: int, quantizer: FSQ, num_codebooks: int = 1) -> None:
        super().__init__()
        inner = quantizer.num_channels * num_codebooks
        self.quantizer, self.num_codebooks = quantizer, num_codebooks
        projected = dim != inner
        self.project_in = nn.Linear(dim, inner) if projected else nn.Identity()
        self.project_out = nn.Linear(inner, dim) if projected else nn.Identity()

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Float [B, dim, H, W] -> the same shape, and indices [B, H, W, codebooks, groups]."""
        batch, _, height, width = latents.shape
        inner = self.project_in(latents.permute(0, 2, 3, 1))
        split = inner.reshape(batch, height, width, self.num_codebooks, -1)
        stacked = split.permute(0, 3, 4, 1, 2).flatten(0, 1)
        output = self.quantizer(stacked)
        codes = output.latents.unflatten(0, (batch, self.num_codebooks))
        indices = output.indices.unflatten(0, (batch, self.num_codebooks))
        joined = codes.permute(0, 3, 4, 1, 2).flatten(3)
        return self.project_out(joined).permute(0, 3, 1, 2), indices.permute(0, 2, 3, 1, 4)
