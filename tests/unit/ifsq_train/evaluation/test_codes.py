"""Code usage: exact counts of any codebook, whatever the batches."""

import math

import pytest
import torch

from ifsq_train.evaluation.codes import CodeCounter, CodeUsage, DigitCounter, digit_histogram
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


@pytest.mark.parametrize("size", [83_521, 2**24, 2**24 + 1, 2**40])
def test_counts_are_exact_for_every_way_of_keeping_them(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    # Few distinct tokens, spread over the whole codebook, so that most of them repeat.
    tokens = torch.randint(0, 500, (90_000,), generator=generator) * ((size - 1) // 499)
    expected = torch.unique(tokens, return_counts=True)[1].double() / len(tokens)
    left, right = CodeCounter([size]), CodeCounter([size])
    for position, part in enumerate(tokens.split(7_000)):
        (left if position % 2 else right).add(part.unsqueeze(-1))
    left.merge(right)
    assert left.num_positions == 90_000
    assert left.used_codes() == [500]
    assert left.entropies()[0] == pytest.approx(float(-(expected * expected.log2()).sum()))


def test_more_waiting_tokens_than_one_fold_are_all_counted() -> None:
    counter = CodeCounter([2**40])
    for _ in range(2):
        for part in torch.arange(200_000).split(30_000):
            counter.add(part.unsqueeze(-1))
    assert counter.used_codes() == [200_000]
    assert counter.num_positions == 400_000
    assert counter.perplexities() == pytest.approx([200_000])


def test_usage_of_a_grouped_quantizer() -> None:
    quantizer = FSQ([5, 5, 3], groups=[2, 1])
    latents = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    indices = quantizer(latents).indices
    digits = quantizer.indices_to_digits(indices)
    whole, left, right = (CodeUsage((5, 5, 3), quantizer.codebook_sizes) for _ in range(3))
    whole.update(digits, indices)
    left.update(digits[:1], indices[:1])
    right.update(digits[1:], indices[1:])
    left.merge(right)
    result = whole.result()
    assert left.result() == result
    assert result["codebook_size"] == [25, 3]
    assert result["code_entropy_bits"] == pytest.approx(sum(whole.codes.entropies()))
    assert result["num_positions"] == 256
    assert [len(shares) for shares in result["digit_histograms"]] == [5, 5, 3]
    assert [sum(shares) for shares in result["digit_histograms"]] == pytest.approx([1, 1, 1])


def test_usage_names_dead_levels() -> None:
    usage = CodeUsage([3, 5], [15])
    usage.update(torch.tensor([[0, 0], [1, 0]]), torch.tensor([[0], [1]]))
    result = usage.result()
    assert (result["dead_levels"], result["dead_levels_total"]) == ([1, 4], 5)
    assert result["digit_histograms"] == [[0.5, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]


def test_usage_of_a_codebook_without_levels_has_token_statistics_only() -> None:
    usage = CodeUsage(None, [8])
    usage.update(None, torch.arange(8).view(2, 2, 2, 1))
    assert usage.result() == {
        "code_entropy_bits": 3.0,
        "perplexity": [8.0],
        "used_codes": [8],
        "codebook_size": [8],
        "num_positions": 8,
    }


def test_usage_refuses_missing_digits_and_no_tokens() -> None:
    tokens = torch.tensor([[0]])
    with pytest.raises(ValueError, match=r"counts digits of \(3,\), but was given none"):
        CodeUsage([3], [3]).update(None, tokens)
    with pytest.raises(ValueError, match="counts no digits"):
        CodeUsage(None, [3]).update(tokens, tokens)
    with pytest.raises(ValueError, match="no token"):
        CodeUsage(None, [3]).result()
