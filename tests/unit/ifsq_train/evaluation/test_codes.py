"""Code usage: exact counts of any codebook, whatever the batches."""

import math

import pytest
import torch

from ifsq_train.evaluation.codes import CodeCounter, DigitCounter, digit_histogram
from ifsq_train.models.quantizers import FSQ


def test_even_use_of_all_codes() -> None:
    counter = CodeCounter([8, 4])
    grid = torch.arange(32).view(2, 4, 4)
    counter.add(torch.stack([grid % 8, torch.zeros_like(grid)], -1))
    assert counter.entropies() == pytest.approx([3.0, 0.0])
    assert counter.perplexities() == pytest.approx([8.0, 1.0])
    assert counter.used_codes() == [8, 1]
    assert counter.dead_codes() == [0, 3]
    assert counter.num_positions == 32


def test_huge_codebooks_need_no_huge_memory() -> None:
    quantizer = FSQ([17] * 8)
    latents = torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    whole, parts, other = (CodeCounter(quantizer.codebook_sizes) for _ in range(3))
    indices = quantizer(latents).indices
    whole.add(indices)
    parts.add(indices[:1])
    other.add(indices[1:])
    parts.merge(other)
    assert whole.results() == parts.results()
    assert whole.used_codes()[0] == len(indices.unique())
    assert whole.entropies()[0] == pytest.approx(math.log2(144))


def test_digits_are_counted_per_channel() -> None:
    digits = torch.tensor([[0, 2], [1, 2], [2, 2], [2, 4]])
    histogram = digit_histogram(digits, [3, 5])
    assert histogram.tolist() == [[1, 1, 2, 0, 0], [0, 0, 3, 0, 1]]


def test_digit_entropy_of_gaussian_latents() -> None:
    """The paper's grid under-fills its end levels: 4.017 bits of 4.087 at 17 levels."""
    latents = torch.randn(1, 2, 500, 500, generator=torch.Generator().manual_seed(1))
    for cells, expected in (("paper", 4.017), ("equal_width", 4.078)):
        quantizer = FSQ([17, 17], cells=cells)  # pyright: ignore
        counter = DigitCounter(quantizer.level_counts)
        counter.add(quantizer.indices_to_digits(quantizer(latents).indices))
        assert counter.entropies() == pytest.approx([expected] * 2, abs=2e-3)


def test_dead_levels_and_histograms_follow_each_channel() -> None:
    counter = DigitCounter([3, 5])
    counter.add(torch.tensor([[0, 2], [1, 2]]))
    assert counter.dead_levels() == [1, 4]
    assert counter.histograms() == [[1, 1, 0], [0, 0, 2, 0, 0]]


def test_foreign_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match=r"tokens 0\.\.9 outside group 0's codebook of 8"):
        CodeCounter([8]).add(torch.tensor([[0], [9]]))
    with pytest.raises(ValueError, match="2 groups"):
        CodeCounter([8]).add(torch.zeros(3, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="digits outside"):
        digit_histogram(torch.tensor([[3]]), [3])
