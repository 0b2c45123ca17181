"""How evenly a tokenizer uses its codes and, for FSQ, the levels of each channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ifsq_train.models.quantizers.usage import count_levels

# Codebooks up to this size get one int64 per entry (128 MiB at most); beyond, one per seen token.
_LARGEST_DENSE = 2**24
_SMALLEST_FOLD = 2**16


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
    rows = digits.reshape(-1, len(levels))
    bounds = torch.tensor(levels, device=rows.device)
    if bool(((rows < 0) | (rows >= bounds)).any()):
        raise ValueError(f"digits outside 0..L-1 for levels {tuple(levels)}")
    return count_levels(rows, levels).cpu()


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
    """Exact counts of tokens, per group.

    Memory is 8 bytes per entry for codebooks up to 2**24, and grows with the distinct tokens seen
    beyond that.

    Args:
        codebook_sizes: entries of each token group.
    """

    def __init__(self, codebook_sizes: Sequence[int]) -> None:
        self.codebook_sizes = tuple(codebook_sizes)
        self._counts = [
            _DenseCounts(size) if size <= _LARGEST_DENSE else _SparseCounts()
            for size in self.codebook_sizes
        ]

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
            self._counts[group].add(codes, counts)

    def merge(self, other: CodeCounter) -> None:
        """Take over another counter's counts."""
        assert self.codebook_sizes == other.codebook_sizes
        for mine, theirs in zip(self._counts, other._counts, strict=True):
            mine.add(*theirs.seen())

    @property
    def num_positions(self) -> int:
        """Grid positions counted; each has one token per group."""
        return int(self._counts[0].seen()[1].sum()) if self._counts else 0

    def entropies(self) -> list[float]:
        """Entropy per group in bits; at most log2 of its codebook and of `num_positions`."""
        return [entropy_bits(counts.seen()[1]) for counts in self._counts]

    def perplexities(self) -> list[float]:
        """2 ** entropy: the size of an evenly used codebook of the same entropy, per group."""
        return [2.0**bits for bits in self.entropies()]

    def used_codes(self) -> list[int]:
        """Distinct tokens seen, per group."""
        return [len(counts.seen()[0]) for counts in self._counts]

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


class CodeUsage:
    """Token statistics and, for quantizers with levels, digit statistics of the same images.

    Args:
        level_counts: levels per channel (`FSQ.level_counts`); None for a codebook without levels,
            such as VQ, whose results then have no digit entries.
        codebook_sizes: entries of each token group.
    """

    def __init__(self, level_counts: Sequence[int] | None, codebook_sizes: Sequence[int]) -> None:
        self.codes = CodeCounter(codebook_sizes)
        self.digits = None if level_counts is None else DigitCounter(level_counts)

    def update(self, digits: Tensor | None, indices: Tensor) -> None:
        """Count digits int64 [..., C] (None without levels) and tokens int64 [..., num_groups].

        Raises:
            ValueError: digits missing or not wanted, or either outside its range.
        """
        if (digits is None) != (self.digits is None):
            wanted = "no digits" if self.digits is None else f"digits of {self.digits.levels}"
            found = "none" if digits is None else f"some of shape {tuple(digits.shape)}"
            raise ValueError(f"code usage counts {wanted}, but was given {found}")
        self.codes.add(indices)
        if self.digits is not None and digits is not None:
            self.digits.add(digits)

    def merge(self, other: CodeUsage) -> None:
        """Take over another one's counts, such as another rank's."""
        assert (self.digits is None) == (other.digits is None)
        self.codes.merge(other.codes)
        if self.digits is not None and other.digits is not None:
            self.digits.merge(other.digits)

    def result(self) -> dict[str, Any]:
        """Statistics by name, JSON-able.

        ``code_entropy_bits`` is of the whole position: the sum over groups, exact if the groups
        are independent and an upper bound otherwise. ``perplexity``, ``used_codes`` and
        ``codebook_size`` have one entry per group; ``digit_entropy_bits``, ``dead_levels`` and
        ``digit_histograms`` (shares that sum to 1) one per channel.

        Raises:
            ValueError: nothing was counted.
        """
        if self.codes.num_positions == 0:
            raise ValueError("no token was counted; give the evaluation at least one image")
        result: dict[str, Any] = {
            "code_entropy_bits": sum(self.codes.entropies()),
            "perplexity": self.codes.perplexities(),
            "used_codes": self.codes.used_codes(),
            "codebook_size": list(self.codes.codebook_sizes),
            "num_positions": self.codes.num_positions,
        }
        if self.digits is None:
            return result
        dead = self.digits.dead_levels()
        return result | {
            "digit_entropy_bits": self.digits.entropies(),
            "dead_levels": dead,
            "dead_levels_total": sum(dead),
            "digit_histograms": [
                [count / sum(row) for count in row] for row in self.digits.histograms()
            ],
        }


class _DenseCounts:
    """One count per codebook entry."""

    def __init__(self, size: int) -> None:
        self._table = torch.zeros(size, dtype=torch.int64)

    def add(self, codes: Tensor, counts: Tensor) -> None:
        """Add counts to distinct codes."""
        self._table[codes] += counts

    def seen(self) -> tuple[Tensor, Tensor]:
        """Codes with a count, ascending, and the counts."""
        codes = self._table.nonzero().squeeze(1)
        return codes, self._table[codes]


class _SparseCounts:
    """Counts of the codes seen; additions wait until folding them in costs little per token."""

    def __init__(self) -> None:
        empty = torch.zeros(0, dtype=torch.int64)
        self._folded = (empty, empty)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0

    def add(self, codes: Tensor, counts: Tensor) -> None:
        """Add counts to distinct codes."""
        self._waiting.append((codes, counts))
        self._num_waiting += len(codes)
        if self._num_waiting > max(_SMALLEST_FOLD, len(self._folded[0])):
            self._fold()

    def seen(self) -> tuple[Tensor, Tensor]:
        """Codes with a count, ascending, and the counts."""
        if self._waiting:
            self._fold()
        return self._folded

    def _fold(self) -> None:
        parts = [self._folded, *self._waiting]
        codes, places = torch.unique(torch.cat([part[0] for part in parts]), return_inverse=True)
        counts = torch.cat([part[1] for part in parts])
        self._folded = codes, torch.zeros_like(codes).index_add_(0, places, counts)
        self._waiting, self._num_waiting = [], 0
