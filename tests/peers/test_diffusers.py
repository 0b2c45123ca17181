"""Tokenizers without a quantizer are diffusers' AutoencoderKL, layer by layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.publishing.diffusers_folder import export_diffusers
from tests.support.precompute_parts import write_tokenizer

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: make test-peers")


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
