"""What a recipe says of a quantizer is what is trained, and where its codebook starts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from ifsq_train.config.networks import QuantizerConfig
from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Continuous, NormalizedVQ

CONFIG: TypeAdapter[Any] = TypeAdapter(QuantizerConfig)


def test_an_lfq_has_the_weights_of_its_recipe() -> None:
    values = {
        "kind": "lfq",
        "num_channels": 4,
        "entropy_weight": 0.2,
        "commitment_weight": 0.5,
        "factorized_channels": [1, 3],
        "entropy_extra": 2.0,
        "entropy_anneal_steps": 10,
    }
    quantizer = LFQ.from_config(CONFIG.validate_python(values)).train()
    assert quantizer.codebook_sizes == (2, 8)
    assert [quantizer.loss_factor("entropy", step) for step in (0, 5, 10)] == [3.0, 2.0, 1.0]
    assert quantizer.loss_factor("commitment", 0) == 1.0
    output = quantizer(torch.full((1, 4, 1, 1), 0.5))
    assert float(output.losses["commitment"]) == pytest.approx(0.5 * 0.5**2)
    gap = output.stats["sample_entropy"] - output.stats["codebook_entropy"]
    assert float(output.losses["entropy"]) == pytest.approx(0.2 * float(gap))


@pytest.mark.parametrize(
    ("loss_form", "expected"), [("released", 1 + 0.3), ("vqvae", 0.3 + 1)], ids=str
)
def test_a_vq_has_the_weights_of_its_recipe(loss_form: str, expected: float) -> None:
    """Both terms are the squared distance; which one beta weighs is seen in the gradients."""
    values = {"kind": "vq", "codebook_size": 1 + 1, "num_channels": 2, "beta": 0.3}
    quantizer = VQ.from_config(CONFIG.validate_python({**values, "loss_form": loss_form}))
    assert isinstance(quantizer, VQ)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[0.0, 0.0], [9.0, 9.0]]))
    latents = torch.ones(1, 2, 1, 1, requires_grad=True)
    loss = quantizer.train()(latents).losses["codebook"]
    assert float(loss) == pytest.approx(expected)
    loss.backward()
    assert latents.grad is not None
    assert quantizer.embedding.weight.grad is not None
    commitment, codebook = (1.0, 0.3) if loss_form == "released" else (0.3, 1.0)
    assert latents.grad.flatten().tolist() == pytest.approx([commitment] * 2)
    assert quantizer.embedding.weight.grad[0].tolist() == pytest.approx([-codebook] * 2)


def test_a_normalized_vq_has_the_weights_of_its_recipe() -> None:
    values = {"kind": "vq", "codebook_size": 2, "num_channels": 2, "beta": 0.3}
    values |= {"normalized": True, "entropy_ratio": 0.7}
    quantizer = VQ.from_config(CONFIG.validate_python(values))
    assert isinstance(quantizer, NormalizedVQ)
    with torch.no_grad():
        quantizer.embedding.weight.copy_(torch.tensor([[5.0, 0.0], [-1.0, -1.0]]))
    losses = quantizer.train()(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).losses
    distance = ((0.6 - 1.0) ** 2 + 0.8**2) / 2
    assert float(losses["codebook"]) == pytest.approx(distance)
    assert float(losses["commitment"]) == pytest.approx(0.3 * distance)
    # One row: its own entropy and that of the mean are the same, up to the added 1e-5.
    assert float(losses["entropy"]) == pytest.approx(0.0, abs=1e-4)
    assert quantizer.entropy_ratio == 0.7


def test_an_fsq_has_all_that_its_recipe_says() -> None:
    values = {
        "kind": "fsq",
        "levels": [5, 7, 9],
        "cells": "equal_width",
        "digit_order": "big",
        "factorized_channels": [1, 2],
        "standardize": True,
        "training": "noise",
    }
    quantizer = FSQ.from_config(CONFIG.validate_python(values))
    assert quantizer.spec() == {
        "kind": "fsq",
        "levels": [5, 7, 9],
        "alpha": 2.0,
        "bound": "simple",
        "cells": "equal_width",
        "digit_order": "big",
        "groups": [1, 2],
        "standardize": True,
        "training": "noise",
    }
    assert FSQ.from_spec(quantizer.spec()).spec() == quantizer.spec()


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_a_continuous_bottleneck_has_the_weight_of_its_recipe(kind: str) -> None:
    values = {"kind": kind, "num_channels": 3, "kl_weight": 0.25}
    quantizer = Continuous.from_config(CONFIG.validate_python(values)).train()
    losses = quantizer(
        torch.cat([torch.full((1, 3, 2, 2), 2.0), torch.zeros(1, 3, 2, 2)], 1)
    ).losses
    found = {name: float(value) for name, value in losses.items()}
    assert found == ({} if kind == "ae" else {"kl": 0.25 * 0.5 * 12 * 2.0**2})


def test_codebooks_start_evenly_around_zero_and_normalized_ones_at_unit_length() -> None:
    torch.manual_seed(0)
    weight = VQ(64, 4).embedding.weight.detach()
    assert float(weight.abs().max()) <= 1 / 64
    assert float(weight.min()) < -0.9 / 64
    assert float(weight.max()) > 0.9 / 64
    lengths = NormalizedVQ(64, 4).embedding.weight.detach().norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(64))
    assert (NormalizedVQ(64, 4).embedding.weight < 0).float().mean() > 0.3
