"""Variants of iFSQ that the paper does not have: a standardized input, noise in training."""

from __future__ import annotations

import pytest
import torch

from ifsq_train.artifacts.networks import build_quantizer, quantizer_from_spec
from ifsq_train.config import FsqConfig
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ


def narrow(seed: int, count: int = 64) -> torch.Tensor:
    """Latents as a trained encoder gives them: off the middle, far narrower than N(0, 1)."""
    normal = torch.randn(count, 2, 4, 4, generator=torch.Generator().manual_seed(seed))
    return 0.3 * normal + torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)


def entropy_of(quantizer: FSQ, latents: torch.Tensor) -> float:
    counts = torch.bincount(quantizer(latents).indices.flatten()).float()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * shares.log2()).sum())


def test_a_standardized_input_fills_the_levels_whatever_its_scale() -> None:
    plain, standardized = FSQ([9, 9]), FSQ([9, 9], standardize=True)
    for step in range(60):
        standardized(narrow(step))
    standardized.eval()
    held_out = narrow(1000, 4096)
    most = entropy_of(FSQ([9, 9]), (held_out - torch.tensor([0.5, -1.0]).view(1, 2, 1, 1)) / 0.3)
    assert entropy_of(standardized, held_out) == pytest.approx(most, abs=0.01)
    assert entropy_of(plain, held_out) < most - 1.0


def test_in_use_a_sample_s_tokens_do_not_depend_on_the_batch() -> None:
    quantizer = FSQ([9, 9], standardize=True)
    for step in range(5):
        quantizer(narrow(step))
    quantizer.eval()
    latents = narrow(7)
    together = quantizer(latents).indices
    assert torch.equal(together[:1], quantizer(latents[:1]).indices)


@pytest.mark.parametrize("plain", ["", "1"])
def test_noise_stands_in_for_rounding_in_training_only(
    plain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, plain)
    quantizer, rounding = FSQ([9, 9], training="noise"), FSQ([9, 9])
    latents = torch.randn(64, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_(True)
    torch.manual_seed(3)
    output = quantizer(latents)
    assert torch.equal(output.indices, rounding(latents).indices)
    bounded = quantizer.scaled(latents) / 4.0
    # Uniform noise one cell wide, of which there are four to either side.
    noise = (output.latents - bounded).detach() * 4.0
    assert float(noise.abs().max()) <= 0.5 + 1e-6
    assert float(noise.std()) == pytest.approx(12**-0.5, rel=0.02)
    output.latents.sum().backward()
    gradient = latents.grad
    (expected,) = torch.autograd.grad(bounded.sum(), latents)
    assert gradient is not None
    torch.testing.assert_close(gradient, expected)
    quantizer.eval()
    assert torch.equal(quantizer(latents).latents, rounding(latents).latents)


def test_the_same_generator_gives_the_same_noise() -> None:
    quantizer, latents = FSQ([9, 9], training="noise"), narrow(0)
    torch.manual_seed(5)
    first = quantizer(latents).latents
    torch.manual_seed(5)
    assert torch.equal(quantizer(latents).latents, first)
    assert not torch.equal(quantizer(latents).latents, first)


def test_a_recipe_s_options_are_in_the_spec_and_defaults_are_not() -> None:
    plain = build_quantizer(FsqConfig(kind="ifsq", levels=(9, 9))).spec()
    assert "standardize" not in plain
    assert "training" not in plain
    config = FsqConfig(kind="ifsq", levels=(9, 9), standardize=True, training="noise")
    spec = build_quantizer(config).spec()
    rebuilt = quantizer_from_spec(spec)
    assert rebuilt is not None
    assert rebuilt.spec() == spec


def test_running_statistics_that_decide_tokens_are_part_of_the_fingerprint() -> None:
    def tokenizer(*, standardize: bool) -> Tokenizer:
        torch.manual_seed(0)
        return Tokenizer(
            FSQ([9, 9], standardize=standardize),
            channel_multipliers=(1, 2), base_channels=8, num_res_blocks=1, z_channels=4,
            norm_groups=4,
        )  # fmt: skip

    plain, standardized = tokenizer(standardize=False), tokenizer(standardize=True)
    assert standardized.fingerprint() == tokenizer(standardize=True).fingerprint()
    before = standardized.fingerprint()
    standardized.encode(torch.rand(4, 3, 8, 8))
    assert standardized.fingerprint() != before
    before = plain.fingerprint()
    plain.encode(torch.rand(4, 3, 8, 8))
    assert plain.fingerprint() == before
