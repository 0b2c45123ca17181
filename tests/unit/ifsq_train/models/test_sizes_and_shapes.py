"""Networks on grids that are not square."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from ifsq_train.sampling.draw import seeded_noise
from ifsq_train.sampling.flow import FlowSamplingConfig, sample_latents

SHAPE: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}


@pytest.mark.parametrize("size", [(16, 48), (512, 512)])
def test_a_tokenizer_takes_every_multiple_of_its_ratio(size: tuple[int, int]) -> None:
    network = Tokenizer(FSQ([5, 5]), channel_multipliers=(1, 1, 1), base_channels=4, norm_groups=2)
    with torch.no_grad():
        images, quantized = network.eval()(torch.zeros(1, 3, *size))
    assert images.shape == (1, 3, *size)
    assert quantized.indices.shape == (1, size[0] // 4, size[1] // 4, 1)
    assert network.downsample_ratio == 4


@pytest.mark.parametrize("sizes", [(25,), (5, 7)])
def test_llamagen_on_a_grid_that_is_not_square(sizes: tuple[int, ...]) -> None:
    model = LlamaGen(**SHAPE, codebook_sizes=sizes, grid=(2, 3)).eval()
    tokens = sample_tokens(model, torch.tensor([0, 1, 2]), [1, 2, 3], SamplingConfig())
    assert tokens.shape == ((3, 6) if len(sizes) == 1 else (3, 6, 2))


def test_dit_on_a_grid_that_is_not_square() -> None:
    torch.manual_seed(0)
    model = DiT(**SHAPE, latent_channels=2, grid=(4, 6), patch_size=2).eval()
    noise = seeded_noise(model, [1, 2])
    settings = FlowSamplingConfig(num_steps=2)
    assert sample_latents(model, torch.tensor([0, 1]), noise, settings).shape == (2, 2, 4, 6)
