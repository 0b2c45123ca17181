"""Lookup-free quantization: the sign of each channel is one bit (Yu et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

from ifsq_train.models.plain import plain_paths
from ifsq_train.models.quantizers.base import Digits, Quantizer, QuantizerOutput

_ENTROPY_BITS_MAX = 18


class LFQ(Quantizer):
    """Signs as codes; zero counts as negative; bit i of an index has weight 2**i.

    Args:
        num_channels: bits.
        entropy_weight: weight of (sample entropy - codebook entropy).
        commitment_weight: weight of the squared distance to the code.
        temperature: of the soft assignment in the entropies.
        groups: bits per token group; None is one group.
        entropy_extra, entropy_anneal_steps: see `lfq_entropy_factor`.

    Raises:
        ValueError: groups do not sum to the bits, or a group too large for the entropy term.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        entropy_weight: float = 0.1,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
        groups: Sequence[int] | None = None,
        entropy_extra: float = 3.0,
        entropy_anneal_steps: int = 2000,
    ) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.groups = tuple(groups) if groups is not None else (num_channels,)
        if sum(self.groups) != num_channels:
            raise ValueError(f"groups={self.groups} must sum to {num_channels} bits")
        if entropy_weight and max(self.groups) > _ENTROPY_BITS_MAX:
            raise ValueError(
                f"groups={self.groups}: the entropy term enumerates 2**bits codes;"
                f" use groups of at most {_ENTROPY_BITS_MAX} or entropy_weight=0"
            )
        self.codebook_sizes = tuple(2**bits for bits in self.groups)
        self.entropy_weight, self.commitment_weight = entropy_weight, commitment_weight
        self.temperature = temperature
        self.entropy_extra, self.entropy_anneal_steps = entropy_extra, entropy_anneal_steps

    @classmethod
    @override
    def from_config(cls, config: Any) -> LFQ:
        return cls(
            config.num_channels,
            entropy_weight=config.entropy_weight,
            commitment_weight=config.commitment_weight,
            groups=config.factorized_channels,
            entropy_extra=config.entropy_extra,
            entropy_anneal_steps=config.entropy_anneal_steps,
        )

    @classmethod
    @override
    def from_spec(cls, spec: Mapping[str, Any]) -> LFQ:
        return cls(sum(spec["groups"]), groups=spec["groups"])

    def loss_factor(self, name: str, step: int) -> float:
        """See Quantizer.loss_factor; the entropy term is annealed."""
        if name != "entropy":
            return 1.0
        extra, steps = self.entropy_extra, self.entropy_anneal_steps
        return lfq_entropy_factor(step, extra=extra, anneal_steps=steps)

    @override
    def forward(self, latents: Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            positive = latents > 0
            codes = torch.where(positive, 1.0, -1.0)
            bits = positive.permute(0, 2, 3, 1).to(torch.int64)
            indices = torch.stack(
                [
                    (part * _powers(part.shape[-1], part)).sum(-1)
                    for part in bits.split(self.groups, -1)
                ],
                -1,
            )
            losses, stats = self._losses(latents, codes) if self.training else ({}, {})
            stats = {**stats, **self._stats(indices)}
            output = codes + (latents - latents.detach())
            return QuantizerOutput(output, indices, losses, stats)

    def _losses(self, latents: Tensor, codes: Tensor) -> tuple[dict, dict]:
        losses = {"commitment": self.commitment_weight * F.mse_loss(latents, codes)}
        if not self.entropy_weight:
            return losses, {}
        rows = latents.permute(0, 2, 3, 1).reshape(-1, self.num_channels)
        sample = latents.new_zeros(())
        codebook = latents.new_zeros(())
        for part in rows.split(self.groups, -1):
            own, average = self._entropies(part)
            sample, codebook = sample + own, codebook + average
        losses["entropy"] = self.entropy_weight * (sample - codebook)
        stats = {"sample_entropy": sample.detach(), "codebook_entropy": codebook.detach()}
        return losses, stats

    def _entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean entropy of the soft assignments and entropy of their mean, nats; rows [N, bits]."""
        if plain_paths():
            return _entropies_of_all_codes(rows, self.temperature)
        return _entropies_bit_by_bit(rows, self.temperature)

    @override
    def indices_to_latents(self, indices: Tensor) -> Tensor:
        self.check_indices(indices)
        parts = []
        for group, size in enumerate(self.groups):
            shifts = torch.arange(size, device=indices.device)
            parts.append((indices[..., group : group + 1] >> shifts) & 1)
        codes = torch.cat(parts, -1).to(torch.float32) * 2.0 - 1.0
        return codes.permute(0, 3, 1, 2).contiguous()

    @override
    def spec(self) -> dict[str, Any]:
        return {"kind": "lfq", "groups": list(self.groups), "digit_order": "little"}

    @override
    def digit_table(self) -> Digits:
        places = tuple(2**bit for size in self.groups for bit in range(size))
        return Digits(self.groups, places, ((-1.0, 1.0),) * len(places))


def _entropies_of_all_codes(rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As written in the publication: a softmax over all 2**bits codes for every row."""
    logits = 2.0 * rows @ all_codes(rows.shape[1], rows.device).t() / temperature
    probabilities = logits.softmax(-1)
    log_probabilities = (logits + 1e-5).log_softmax(-1)
    sample = -(probabilities * log_probabilities).sum(-1).mean()
    return sample, _entropy_of(probabilities.mean(0))


def _entropies_bit_by_bit(rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The same numbers: the bits of a row's assignment are independent of each other.

    Entropies of independent bits add up. The mean assignment is a product of two tables of
    2**(bits/2) columns, so nothing of size N x 2**bits is ever made.
    """
    logits = rows * (4.0 / temperature)
    ones, zeros = logits.sigmoid(), (-logits).sigmoid()
    sample = (ones * F.softplus(-logits) + zeros * F.softplus(logits)).sum(-1).mean()
    middle = rows.shape[1] // 2
    low = _joint(zeros[:, :middle], ones[:, :middle])
    high = _joint(zeros[:, middle:], ones[:, middle:])
    return sample, _entropy_of((high.t() @ low).flatten() / len(rows))


def _joint(zeros: Tensor, ones: Tensor) -> Tensor:
    """Probability of every pattern of some bits, [N, 2**bits]; bit i has weight 2**i."""
    table = zeros.new_ones(len(zeros), 1)
    for zero, one in zip(zeros.unbind(1), ones.unbind(1), strict=True):
        table = torch.cat([table * zero.unsqueeze(1), table * one.unsqueeze(1)], 1)
    return table


def _entropy_of(shares: Tensor) -> Tensor:
    # The released code adds 1e-5 inside the logarithm.
    return -(shares * (shares + 1e-5).log()).sum()


def _powers(count: int, like: Tensor) -> Tensor:
    return 2 ** torch.arange(count, device=like.device)


def all_codes(num_bits: int, device: torch.device | None = None) -> Tensor:
    """Every code, float32 [2**num_bits, num_bits] of -1 and 1; the row is the index."""
    numbers = torch.arange(2**num_bits, device=device).unsqueeze(1)
    bits = (numbers >> torch.arange(num_bits, device=device)) & 1
    return bits.to(torch.float32) * 2.0 - 1.0


def lfq_entropy_factor(step: int, *, extra: float = 3.0, anneal_steps: int = 2000) -> float:
    """Factor on LFQ's entropy loss: 1 + `extra` at step 0, falling linearly to 1."""
    return 1.0 + extra * max(0.0, 1.0 - step / anneal_steps)
