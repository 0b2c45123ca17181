"""How evenly a tokenizer uses its codes and, for FSQ, the levels of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def entropy_bits(counts: Tensor) -> float:
    """Entropy of the distribution with these counts (any shape, not all zero), in bits."""
    used = counts[counts > 0].double()
    frequencies = used / used.sum()
    return abs(float(-(frequencies * frequencies.log2()).sum()))


def digit_histogram(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """How often each level of each channel occurs.

    Args:
        digits: int64 [..., C]; channel c in 0..levels[c]-1 (`FSQ.indices_to_digits`).
        levels: levels per channel.

    Returns:
        int64 [C, max(levels)] on the CPU; entries beyond a channel's levels are zero.

    Raises:
        ValueError: digits of another number of channels, or outside their levels.
    """
    if digits.shape[-1] != len(levels):
        raise ValueError(f"digits have {digits.shape[-1]} channels, levels {len(levels)}")
    width, rows = max(levels), digits.reshape(-1, len(levels))
    bounds = torch.tensor(levels, device=rows.device)
    if bool(((rows < 0) | (rows >= bounds)).any()):
        raise ValueError(f"digits outside 0..L-1 for levels {tuple(levels)}")
    offsets = torch.arange(len(levels), device=rows.device) * width
    counts = torch.bincount((rows + offsets).flatten(), minlength=len(levels) * width)
    return counts.view(len(levels), width).cpu()


class DigitCounter:
    """Running `digit_histogram`, and what it says of each channel."""

    def __init__(self, levels: Sequence[int]) -> None:
        self.levels = tuple(levels)
        self.counts = torch.zeros(len(self.levels), max(self.levels), dtype=torch.int64)

    def add(self, digits: Tensor) -> None:
        """Count digits int64 [..., C]."""
        self.counts += digit_histogram(digits, self.levels)

    def merge(self, other: DigitCounter) -> None:
        """Take over another counter's counts."""
        assert self.levels == other.levels
        self.counts += other.counts

    def histograms(self) -> list[list[int]]:
        """Counts of every level, one list per channel."""
        return [row[:count].tolist() for row, count in zip(self.counts, self.levels, strict=True)]

    def entropies(self) -> list[float]:
        """Entropy per channel in bits; at most log2 of its levels."""
        return [entropy_bits(row) for row in self.counts]

    def dead_levels(self) -> list[int]:
        """Levels per channel that never occurred."""
        return [
            int((row[:count] == 0).sum())
            for row, count in zip(self.counts, self.levels, strict=True)
        ]

    def results(self) -> dict[str, Any]:
        """Entropies, dead levels and histograms, each one entry per channel."""
        return {
            "digit_entropy_bits": self.entropies(),
            "digit_dead_levels": self.dead_levels(),
            "digit_histograms": self.histograms(),
        }


class CodeCounter:
    """Counts of tokens, per group; memory grows with the distinct tokens, not the codebook.

    Args:
        codebook_sizes: entries of each token group.
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        empty = torch.zeros(0, dtype=torch.int64)
        self._counts = [(empty, empty) for _ in self.codebook_sizes]

    def add(self, indices: Tensor) -> None:
        """Count tokens int64 [..., num_groups].

        Raises:
            ValueError: another number of groups, or a token outside its codebook.
        """
        if indices.shape[-1] != len(self.codebook_sizes):
            raise ValueError(
                f"tokens have {indices.shape[-1]} groups, the codebooks {self.codebook_sizes}"
            )
        for group, size in enumerate(self.codebook_sizes):
            codes, counts = torch.unique(indices[..., group].cpu(), return_counts=True)
            if codes.numel() and not 0 <= int(codes[0]) <= int(codes[-1]) < size:
                found = f"{int(codes[0])}..{int(codes[-1])}"
                raise ValueError(f"tokens {found} outside group {group}'s codebook of {size}")
            self._counts[group] = _added(self._counts[group], (codes, counts))

    def merge(self, other: CodeCounter) -> None:
        """Take over another counter's counts."""
        assert self.codebook_sizes == other.codebook_sizes
        self._counts = [_added(*pair) for pair in zip(self._counts, other._counts, strict=True)]

    @property
    def num_positions(self) -> int:
        """Grid positions counted; each has one token per group."""
        return int(self._counts[0][1].sum()) if self._counts else 0

    def entropies(self) -> list[float]:
        """Entropy per group in bits; at most log2 of its codebook and of `num_positions`."""
        return [entropy_bits(counts) for _, counts in self._counts]

    def perplexities(self) -> list[float]:
        """2 ** entropy: the size of an evenly used codebook of the same entropy, per group."""
        return [2.0**bits for bits in self.entropies()]

    def used_codes(self) -> list[int]:
        """Distinct tokens seen, per group."""
        return [len(codes) for codes, _ in self._counts]

    def dead_codes(self) -> list[int]:
        """Codebook entries never seen, per group."""
        return [
            size - used for size, used in zip(self.codebook_sizes, self.used_codes(), strict=True)
        ]

    def results(self) -> dict[str, Any]:
        """Entropies, perplexities, used and dead codes, each one entry per group."""
        return {
            "code_entropy_bits": self.entropies(),
            "code_perplexity": self.perplexities(),
            "codes_used": self.used_codes(),
            "codes_dead": self.dead_codes(),
            "code_positions": self.num_positions,
        }


def _added(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Sum of two sorted (codes, counts) pairs."""
    codes, places = torch.unique(torch.cat([first[0], second[0]]), return_inverse=True)
    counts = torch.zeros_like(codes).index_add_(0, places, torch.cat([first[1], second[1]]))
    return codes, counts
