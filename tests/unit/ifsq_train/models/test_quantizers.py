"""What holds for quantizers without any recorded tensors."""

import math

import pytest
import torch

from ifsq_train.evaluation.codes import CodeCounter, DigitCounter
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Continuous, NormalizedVQ, Quantizer
from ifsq_train.models.quantizers.vq import nearest


@pytest.mark.parametrize("levels", [[17] * 6, [17] * 8, [65] * 4, [8, 5, 5, 5], [257] * 4])
@pytest.mark.parametrize("order", ["little", "big"])
def test_index_round_trip_is_exact(levels: list[int], order: str) -> None:
    """In fp32 arithmetic 24 % of 17^6 and 99 % of 17^8 indices would be wrong."""
    even = any(level % 2 == 0 for level in levels)
    quantizer = FSQ(levels, bound="shifted" if even else "simple", digit_order=order)  # pyright: ignore
    z = torch.randn(4, len(levels), 16, 16, generator=torch.Generator().manual_seed(0)) * 1.2
    output = quantizer(z)
    assert torch.equal(quantizer.indices_to_latents(output.indices), output.latents)
    digits = quantizer.indices_to_digits(output.indices).double()
    places = range(len(levels)) if order == "little" else range(len(levels) - 1, -1, -1)
    exact = [0] * digits[..., 0].numel()
    weight = 1
    for place in places:
        column = digits[..., place].flatten().tolist()
        exact = [total + weight * int(digit) for total, digit in zip(exact, column, strict=True)]
        weight *= levels[place]
    assert output.indices[..., 0].flatten().tolist() == exact
    assert quantizer.codebook_sizes == (math.prod(levels),)


@pytest.mark.parametrize("groups", [[2, 2, 2], [3, 3], [1, 5]])
@pytest.mark.parametrize("levels", [[5] * 6, [5, 9, 5, 17, 3, 3], [257] * 6])
@pytest.mark.parametrize("order", ["little", "big"])
def test_groups_are_numbered_each_by_itself(
    groups: list[int], levels: list[int], order: str
) -> None:
    """Against Python's integers; memory of the latents in either layout."""
    quantizer = FSQ(levels, digit_order=order, groups=groups)  # pyright: ignore
    z = torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0)) * 1.2
    output = quantizer(z)
    turned = quantizer(z.contiguous(memory_format=torch.channels_last))
    assert torch.equal(output.indices, turned.indices)
    digits = (output.latents.double() * (torch.tensor(levels) // 2).view(1, 6, 1, 1)).round().long()
    digits += (torch.tensor(levels) // 2).view(1, 6, 1, 1)
    first = 0
    for group, size in enumerate(groups):
        channels = list(range(first, first + size))
        weight, exact = 1, torch.zeros(2, 8, 8, dtype=torch.int64)
        for channel in channels if order == "little" else reversed(channels):
            exact, weight = exact + weight * digits[:, channel], weight * levels[channel]
        assert torch.equal(output.indices[..., group], exact)
        first += size


@pytest.mark.parametrize("levels", [[17] * 4, [17] * 6, [17] * 8, [65] * 4, [129] * 4, [8, 6, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bf16_autocast_gives_the_same_tokens(levels: list[int], dtype: torch.dtype) -> None:
    """All of a hundred thousand values, of latents in either type (a network's are in bf16)."""
    quantizer = FSQ(levels, bound="shifted" if 8 in levels else "simple")
    count = 100_000 // len(levels) // 64
    noise = torch.randn(count, len(levels), 8, 8, generator=torch.Generator().manual_seed(0))
    z = (noise * 1.2).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = quantizer(z)
    assert mixed.latents.dtype == torch.float32
    expected = quantizer(z.float())
    assert torch.equal(mixed.indices, expected.indices)
    assert torch.equal(mixed.latents, expected.latents)


@pytest.mark.parametrize("cells", ["paper", "equal_width"])
@pytest.mark.parametrize("levels", [[17] * 4, [5, 9, 17, 33], [257] * 7])
def test_the_fused_path_gives_the_bits_of_the_plain_one(
    levels: list[int], cells: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [1, len(levels) - 1]
    quantizer = FSQ(levels, cells=cells, groups=groups, track_statistics=True)  # pyright: ignore
    noise = torch.randn(32, len(levels), 16, 16, generator=torch.Generator().manual_seed(0)) * 2
    results = []
    for plain in ("0", "1"):
        monkeypatch.setenv(VARIABLE, plain)
        z = noise.clone().requires_grad_()
        quantizer.running_mean.zero_()
        output = quantizer(z)
        output.latents.square().sum().backward()
        assert z.grad is not None
        results.append((output.latents, output.indices, z.grad, quantizer.running_mean.clone()))
    (fused, indices, gradient, mean), (plain_latents, plain_indices, plain_gradient, same) = results
    assert torch.equal(mean, same)
    assert torch.allclose(mean.flatten(), 0.1 * noise.mean((0, 2, 3)), atol=1e-7)
    assert torch.equal(fused, plain_latents)
    assert torch.equal(indices, plain_indices)
    assert torch.allclose(gradient, plain_gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 6, 11])
def test_lfq_entropies_bit_by_bit_are_those_over_all_codes(
    bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = torch.randn(2, bits, 8, 8, generator=torch.Generator().manual_seed(0)).double() * 0.02
    values = []
    for plain in ("0", "1"):
        monkeypatch.setenv(VARIABLE, plain)
        values.append(LFQ(bits, entropy_weight=1.0)(z).losses["entropy"])
    assert values[0].item() == pytest.approx(values[1].item(), rel=1e-5, abs=1e-6)


def test_statistics_can_be_left_out() -> None:
    quantizer = FSQ([5, 5], track_statistics=True).train()
    quantizer.measure_use = False
    assert quantizer(torch.randn(1, 2, 4, 4)).stats == {}
    assert float(quantizer.running_var.sum()) != 2.0


@pytest.mark.parametrize("alpha", [1.0, 1.6, 2.0])
@pytest.mark.parametrize("num_levels", [3, 5, 17, 257])
def test_bound_against_float64(alpha: float, num_levels: int) -> None:
    z = torch.linspace(-6, 6, 4001).view(1, 1, 1, -1)
    scaled = FSQ([num_levels], alpha=alpha).scaled(z)
    wide = z.double()
    exact = (2 / (1 + torch.exp(-alpha * wide)) - 1) * (num_levels - 1) / 2
    assert (scaled.double() - exact).abs().max() < 1e-6 * num_levels


def test_alpha_two_is_tanh() -> None:
    z = torch.linspace(-5, 5, 1001).view(1, 1, 1, -1)
    assert torch.allclose(FSQ([17], alpha=2.0).scaled(z), torch.tanh(z) * 8, atol=2e-6)


def test_equal_width_cells_fill_the_end_levels() -> None:
    """On a uniform bounded value the paper's grid under-fills the two ends by half."""
    uniform = torch.rand(1, 1, 400, 400, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = torch.log((1 + uniform) / (1 - uniform)) / 1.6
    for cells, share in (("paper", 0.5 / 8), ("equal_width", 1 / 9)):
        quantizer = FSQ([9], cells=cells)  # pyright: ignore
        counts = quantizer(z).indices.flatten().bincount(minlength=9).double()
        frequencies = counts / counts.sum()
        assert abs(float(frequencies[0]) - share) < 2e-3
        assert counts.numel() == 9


def test_gradient_is_that_of_the_bound() -> None:
    z = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    FSQ([17, 17])(z).latents.sum().backward()
    sigmoid = torch.sigmoid(1.6 * z.detach())
    assert z.grad is not None
    assert torch.allclose(z.grad, 2 * 1.6 * sigmoid * (1 - sigmoid), atol=1e-6)


@pytest.mark.parametrize(
    ("levels", "options", "message"),
    [
        ([8, 5], {}, "needs odd levels"),
        ([1, 5], {}, "at least 2"),
        ([5, 5], {"groups": [1]}, "must sum"),
        ([257] * 8, {}, "more than 2"),
    ],
)
def test_impossible_settings_are_refused(levels: list[int], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FSQ(levels, **options)


def test_training_stats_say_how_levels_and_tokens_are_used() -> None:
    quantizer = FSQ([5, 9], bound="simple", groups=[1, 1], track_statistics=True).train()
    z = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.3
    output = quantizer(z)
    digits = DigitCounter([5, 9])
    digits.add(quantizer.indices_to_digits(output.indices))
    tokens = CodeCounter([45])
    tokens.add(output.indices[..., :1] + 5 * output.indices[..., 1:])
    stats = {name: float(value) for name, value in output.stats.items()}
    assert stats["code_entropy"] == pytest.approx(tokens.entropies()[0], rel=1e-5)
    for channel in range(2):
        assert stats[f"digit_entropy/{channel}"] == pytest.approx(digits.entropies()[channel])
        assert stats[f"dead_levels/{channel}"] == digits.dead_levels()[channel]
        mean = quantizer.running_mean[0, channel, 0, 0]
        assert stats[f"prebound_mean/{channel}"] == pytest.approx(float(mean))
    assert not any(value.requires_grad for value in output.stats.values())
    assert quantizer.eval()(z).stats == {}


@pytest.mark.parametrize("quantizer", [VQ(16, 4), NormalizedVQ(16, 4), LFQ(4), FSQ([5] * 4)])
def test_every_quantizer_reports_the_entropy_of_its_tokens(quantizer: Quantizer) -> None:
    output = quantizer.train()(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)))
    tokens = CodeCounter(quantizer.codebook_sizes)
    tokens.add(output.indices)
    entropy = float(output.stats["code_entropy"])
    assert entropy == pytest.approx(tokens.entropies()[0], rel=1e-5)


@pytest.mark.parametrize("quantizer", [VQ(16, 4), NormalizedVQ(16, 4), LFQ(4), FSQ([5] * 4)])
def test_tokens_decode_to_the_latents_they_came_from(quantizer: Quantizer) -> None:
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = quantizer.eval()(z)
        decoded = quantizer.indices_to_latents(output.indices)
    assert decoded.dtype == torch.float32
    assert torch.allclose(decoded, output.latents, atol=1e-6)


@pytest.mark.parametrize("quantizer", [VQ(16, 4), NormalizedVQ(16, 4), LFQ(4)])
def test_autocast_gives_the_same_tokens(quantizer: Quantizer) -> None:
    z = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = quantizer.eval()(z).indices
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer(z).indices, expected)


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("entries", [1, 255, 256, 300, 5000])
@pytest.mark.parametrize("count", [0, 1, 500])
def test_the_nearest_entry_is_that_of_float64(
    entries: int, count: int, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    random = torch.Generator().manual_seed(0)
    codebook = torch.randn(entries, 4, generator=random)
    rows = torch.randn(count, 4, generator=random)
    found = nearest(rows, codebook)
    assert found.shape == (count,)
    assert found.dtype == torch.int64
    distances = (rows.double()[:, None] - codebook.double()).square().sum(2)
    assert torch.equal(found, distances.argmin(1))


@pytest.mark.parametrize("plain", ["0", "1"])
def test_of_entries_as_near_the_first_is_taken(plain: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    codebook = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)).repeat(3, 1)
    assert torch.equal(nearest(codebook, codebook), torch.arange(200).repeat(3))
    # Distances to a row that is not finite are equal too: none is a number.
    assert nearest(torch.full((1, 4), float("nan")), codebook).tolist() == [0]
    infinite = torch.tensor([[float("inf"), 0.0, 0.0, 0.0]])
    assert 0 <= int(nearest(infinite, codebook)) < len(codebook)


def test_latents_that_are_not_finite_do_not_stop_the_log() -> None:
    quantizer = FSQ([5, 5], track_statistics=True).train()
    output = quantizer(torch.full((1, 2, 4, 4), float("nan")))
    assert output.latents.isnan().all()
    assert "digit_entropy/0" in output.stats


def tokens_of(scaled: torch.Tensor) -> torch.Tensor:
    """Little-endian index of bounded values [B, 4, H, W] on the scale of 17 levels."""
    digits = scaled.round().to(torch.int64) + 8
    return (digits * torch.tensor([1, 17, 289, 4913]).view(1, 4, 1, 1)).sum(1)


def test_bf16_bound_gives_other_tokens_than_float64_and_ours_does_not() -> None:
    """The released code bounds in bf16 under autocast: one token in ten is another one."""
    z = torch.randn(64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    exact = tokens_of((2 * torch.sigmoid(1.6 * z.double()) - 1) * 8)
    with torch.autocast("cpu", torch.bfloat16):
        ours = FSQ([17] * 4)(z).indices[..., 0]
    released = tokens_of((2 * torch.sigmoid(1.6 * z.bfloat16()) - 1).float() * 8)
    assert float((released != exact).float().mean()) > 0.05
    # A value on a cell's border may fall to either side in fp32; none of these does.
    assert torch.equal(ours, exact)


def test_continuous_latents_are_fp32_under_autocast() -> None:
    """So that an AE is compared with a quantizer at the same precision."""
    moments = torch.randn(2, 8, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for deterministic in (True, False):
            output = Continuous(4, deterministic=deterministic)(moments)
            assert output.latents.dtype == torch.float32


def test_lfq_trains_with_several_groups() -> None:
    """The released code crashes here; the entropies of independent groups add up."""
    z = torch.randn(2, 6, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.01
    grouped = LFQ(6, entropy_weight=1.0, groups=[2, 4])
    output = grouped(z.requires_grad_())
    parts = [
        LFQ(size, entropy_weight=1.0)(part).losses["entropy"]
        for size, part in zip((2, 4), z.split([2, 4], 1), strict=True)
    ]
    expected = torch.stack(parts).sum().detach()
    assert torch.allclose(output.losses["entropy"].detach(), expected, rtol=1e-5)
    torch.stack(list(output.losses.values())).sum().backward()
    assert z.grad is not None
    assert z.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        (FSQ([17, 17, 5]), 10.0),
        (FSQ([17, 17, 5], groups=[2, 1]), 10.0),
        (FSQ([8, 2], bound="shifted"), 4.0),
        (LFQ(14), 14.0),
        (VQ(1024, 4), 10.0),
        (Continuous(4), 64.0),
    ],
)
def test_bits_of_a_position_are_counted_as_the_paper_counts_them(
    quantizer: Quantizer, bits: float
) -> None:
    """K bits a channel for 2**K + 1 levels; an even number of levels counts its own logarithm."""
    assert quantizer.latent_bits == bits
