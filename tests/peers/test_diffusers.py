"""Tokenizers without a quantizer are diffusers' AutoencoderKL, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import TrainConfig
from ifsq_train.publishing.diffusers_folder import export_diffusers, import_diffusers
from tests.support.precompute_parts import tokenizer_recipe, write_tokenizer

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers")


def test_an_autoencoderkl_of_diffusers_comes_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        mid_block_add_attention=False,
    ).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    shape: dict[str, Any] = {"num_res_blocks": 2, "channel_multipliers": [1, 2, 2]}
    recipe = TrainConfig.model_validate(tokenizer_recipe(tmp_path / "run", kind="vae", **shape))
    import_diffusers(tmp_path / "theirs", tmp_path / "run", recipe)
    ours = load_tokenizer(tmp_path / "run").network
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        latents = theirs.encode(images).latent_dist.mode()
        torch.testing.assert_close(ours.encode(images).latents, latents, atol=2e-5, rtol=1e-4)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(ours.decode(latents), decoded, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "attention"), [("vae", False), ("vae", True), ("ae", False)])
def test_autoencoderkl_gives_the_same_numbers(tmp_path: Path, kind: str, attention: bool) -> None:
    shape = {"num_res_blocks": 2, "channel_multipliers": [1, 2, 2], "attention": attention}
    write_tokenizer(tmp_path / "run", kind=kind, **shape)
    export_diffusers(tmp_path / "run", tmp_path / "out")
    theirs = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    ours = load_tokenizer(tmp_path / "run").network
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        latents = ours.encode(images).latents
        torch.testing.assert_close(posterior.mode(), latents, atol=2e-5, rtol=1e-4)
        moments = ours.quant_conv(ours.encoder(images))
        torch.testing.assert_close(posterior.parameters, moments, atol=2e-5, rtol=1e-4)
        decoded = theirs.decode(latents).sample
        torch.testing.assert_close(decoded, ours.decode(latents), atol=2e-5, rtol=1e-4)
