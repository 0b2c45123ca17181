"""What networks make themselves lies where their inputs are: on a GPU all else would be refused."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn

from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.key_value_cache import CacheWindow, KeyValueCache, WholeCache
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Continuous, NormalizedVQ, Quantizer
from ifsq_train.models.quantizers.usage import count_levels, level_entropies_bits
from tests.support.one_device import OneDevice, on

SHAPE: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}


@pytest.fixture(autouse=True)
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none of the device `meta`."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def quantizers() -> dict[str, Quantizer]:
    return {
        "fsq": FSQ([5] * 4),
        "fsq of unlike levels": FSQ([5, 7, 9, 3], groups=[1, 3]),
        "fsq in groups": FSQ([5] * 4, groups=[2, 2], cells="equal_width"),
        "shifted fsq": FSQ([8, 5, 5, 5], bound="shifted"),
        "noisy fsq": FSQ([5] * 4, training="noise", standardize=True),
        "lfq": LFQ(4, groups=(2, 2)),
        "vq": VQ(16, 4),
        "normalized vq": NormalizedVQ(16, 4, entropy_ratio=0.1),
        "vae": Continuous(2, deterministic=False),
    }


@pytest.mark.parametrize("plain", ["0", "1"])
@pytest.mark.parametrize("name", list(quantizers()))
def test_quantizing_stays_on_the_device(
    name: str, plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    quantizer = quantizers()[name].to("meta").train()
    latents = torch.randn(2, quantizer.moment_channels, 4, 4, device="meta", requires_grad=True)
    with OneDevice():
        output = quantizer(latents)
        (output.latents.sum() + sum(output.losses.values())).backward()
    assert on("meta", (output.latents, output.indices, output.losses, output.stats, latents.grad))


def test_counting_levels_stays_on_the_device() -> None:
    with OneDevice():
        counts = count_levels(torch.zeros(2, 3, 4, 4, dtype=torch.int64, device="meta"), (5, 7, 9))
        assert on("meta", (counts, level_entropies_bits(counts)))


def call(network: nn.Module, *inputs: torch.Tensor) -> Any:
    with OneDevice():
        return network.to("meta")(*(part.to("meta") for part in inputs))


@pytest.mark.parametrize("sizes", [(25,), (5, 7)])
def test_llamagen_stays_on_the_device(sizes: tuple[int, ...]) -> None:
    model = LlamaGen(**SHAPE, codebook_sizes=sizes, grid=(2, 3)).train()
    assert on("meta", call(model, *model.example_inputs()).logits)


def test_dit_stays_on_the_device() -> None:
    model = DiT(**SHAPE, latent_channels=2, grid=(4, 6), patch_size=2).train()
    assert on("meta", call(model, *model.example_inputs()).prediction)


def test_a_tokenizer_stays_on_the_device() -> None:
    shape: dict[str, Any] = {"channel_multipliers": (1, 1), "base_channels": 4, "norm_groups": 2}
    network = Tokenizer(LFQ(4), attention=True, **shape).train()
    images, quantized = call(network, torch.zeros(1, 3, 8, 8))
    assert on("meta", (images, quantized.indices))


@pytest.mark.parametrize("window", [False, True])
def test_caches_of_fixed_shapes_stay_on_the_device(window: bool) -> None:
    cache: KeyValueCache = WholeCache((2, 3, 6, 8), torch.zeros(1, device="meta"))
    if window:
        keys, values = torch.zeros(2, 2, 3, 6, 8, device="meta").unbind()
        cache = CacheWindow(keys, values, 2, 4)
    new = torch.zeros(2, 3, 1, 8, device="meta")
    with OneDevice():
        assert on("meta", cache.attend(new, new, new, torch.zeros(1, device="meta").long()))
