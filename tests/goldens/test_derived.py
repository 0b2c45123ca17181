"""The system gives what the formulas give, here and in every clone."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from ifsq_train.evaluation.generation import FeatureMoments, frechet_distance
from ifsq_train.evaluation.inception_statistics import inception_score
from ifsq_train.losses.adversarial import discriminator_loss, generator_loss
from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.losses.flow_matching import LinearPath, direction_error, velocity_error
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import VARIABLE
from ifsq_train.models.quantizers import FSQ, LFQ, VQ
from ifsq_train.sampling.autoregressive import SamplingConfig, filtered_probabilities
from tests.goldens import networks, store
from tests.support.goldens import assert_close, assert_relative
from tests.support.lfq_rounding import assert_gradient_within_rounding


@cache
def known() -> dict[str, Tensor]:
    return store.read()


def test_the_committed_values_are_what_the_formulas_give() -> None:
    """To the rounding of the libraries that NumPy calls; the inputs exactly.

    A gradient is a difference of large terms, so its small elements are known to a share of the
    largest one only: processors differ there.
    """
    derived, committed = store.derive_all(), {k: v.numpy() for k, v in known().items()}
    assert derived.keys() == committed.keys()
    for name, value in derived.items():
        assert value.dtype == committed[name].dtype, name
        if value.dtype == np.float64:
            near = 1e-9 * float(np.abs(value).max(initial=1e-3))
            np.testing.assert_allclose(committed[name], value, rtol=1e-9, atol=near, err_msg=name)
        else:
            np.testing.assert_array_equal(committed[name], value, err_msg=name)


@pytest.fixture(params=["0", "1"], ids=["fast", "plain"])
def paths(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both implementations of what has two."""
    monkeypatch.setenv(VARIABLE, request.param)
    return request.param


@pytest.mark.parametrize(
    ("name", "levels", "alpha"),
    [("fsq", [17] * 4, 2.0), ("ifsq", [17] * 4, 1.6), ("mixed", [5, 3, 9], 1.6)],
)
def test_fsq(paths: str, name: str, levels: list[int], alpha: float) -> None:
    values = known()
    quantizer, z = FSQ(levels, alpha=alpha), values[f"{name}.z"].clone().requires_grad_()
    output = quantizer(z)
    assert_close(output.latents.double(), values[f"{name}.codes"], rtol=0, atol=1e-7)
    assert torch.equal(output.indices[..., 0], values[f"{name}.index"])
    (output.latents * values[f"{name}.w"]).sum().backward()
    assert z.grad is not None
    assert_close(z.grad.double(), values[f"{name}.gradient"], rtol=1e-5, atol=1e-6)
    back = quantizer.indices_to_latents(output.indices)
    assert_close(back.double(), values[f"{name}.codes"], rtol=0, atol=1e-7)


def test_vq(paths: str) -> None:
    values = known()
    quantizer = VQ(19, 3, beta=0.25, loss_form="vqvae")
    with torch.no_grad():
        quantizer.embedding.weight.copy_(values["vq.codebook"])
    output = quantizer(values["vq.z"].t().reshape(1, 3, 6, 8))
    assert torch.equal(output.indices.flatten(), values["vq.index"])
    assert_close(output.losses["codebook"].double(), values["vq.loss"], rtol=1e-6)


def test_lfq(paths: str) -> None:
    values = known()
    x = values["lfq.x"].t().reshape(1, 5, 3, 4).requires_grad_()
    quantizer = LFQ(5, entropy_weight=1.0, commitment_weight=0.25)
    output = quantizer(x)
    assert_close(output.stats["sample_entropy"].double(), values["lfq.sample_entropy"], rtol=1e-5)
    assert_close(output.stats["codebook_entropy"].double(), values["lfq.mean"], rtol=1e-5)
    torch.stack(list(output.losses.values())).sum().backward()
    assert x.grad is not None
    assert_gradient_within_rounding(
        x.grad, x, torch.zeros_like(x), derived=values["lfq.gradient"].t().reshape(x.shape)
    )


def test_adversarial_losses() -> None:
    values = known()
    real, fake = values["gan.real"], values["gan.fake"]
    for kind in ("hinge", "vanilla"):
        found = discriminator_loss(real, fake, kind)  # pyright: ignore[reportArgumentType]
        assert_close(found.double(), values[f"gan.{kind}"], rtol=1e-6)
    assert_close(generator_loss(fake).double(), values["gan.generator"], rtol=1e-5, atol=1e-7)


def test_token_cross_entropy() -> None:
    values = known()
    found = token_cross_entropy([values["ce.logits"]], values["ce.tokens"])
    assert_close(found.double(), values["ce.loss"], rtol=1e-6)


@pytest.mark.parametrize("way", ["plain", "fused"])
def test_alignment(way: str) -> None:
    values = known()
    found = alignment_loss([values["repa.mine"]], [values["repa.theirs"]], way=way)  # pyright: ignore
    assert_close(found.double(), values["repa.loss"], rtol=1e-5)


def test_flow_matching() -> None:
    values = known()
    x, velocity = LinearPath().interpolate(
        values["flow.data"], values["flow.noise"], values["flow.t"]
    )
    assert_close(x.double(), values["flow.x"], rtol=1e-6, atol=1e-7)
    assert_close(velocity.double(), values["flow.velocity"], rtol=1e-6, atol=1e-7)
    error = velocity_error(values["flow.guess"], velocity)
    assert_close(error.double(), values["flow.error"], rtol=1e-5)
    direction = direction_error(values["flow.guess"], velocity)
    assert_close(direction.double(), values["flow.direction"], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("plain", SamplingConfig()),
        ("hot", SamplingConfig(temperature=1.7)),
        ("k", SamplingConfig(top_k=5)),
        ("p", SamplingConfig(temperature=0.9, top_k=9, top_p=0.6)),
    ],
)
def test_filters(name: str, config: SamplingConfig) -> None:
    values = known()
    found = filtered_probabilities(values["draw.with"], config)
    assert_close(found.double(), values[f"draw.{name}"], rtol=1e-5, atol=1e-7)


def test_frechet_distance_and_inception_score() -> None:
    values = known()
    moments = []
    for name in ("fid.a", "fid.b"):
        one = FeatureMoments(6)
        one.add(values[name])
        moments.append(one)
    assert frechet_distance(*moments) == pytest.approx(float(values["fid.value"]), rel=1e-9)
    assert inception_score(values["is.shares"]) == pytest.approx(
        float(values["is.value"]), rel=1e-9
    )


def weights_of(name: str) -> dict[str, Tensor]:
    prefix = f"{name}.weight."
    return {k[len(prefix) :]: v for k, v in known().items() if k.startswith(prefix)}


def test_llamagen(paths: str) -> None:
    values = known()
    model = LlamaGen(
        num_layers=networks.LAYERS,
        num_heads=networks.HEADS,
        dim=networks.DIM,
        codebook_sizes=networks.CODEBOOKS,
        grid=networks.GRID,
        num_classes=networks.CLASSES,
        factorized_layers=networks.HEAD_LAYERS,
        multiple_of=networks.MULTIPLE,
    ).eval()
    model.load_state_dict(weights_of("llamagen"))
    logits = model(values["llamagen.tokens"], values["llamagen.labels"]).logits
    for group, found in enumerate(logits):
        assert_relative(found, values[f"llamagen.logits{group}"], 1e-5)


def test_dit(paths: str) -> None:
    values = known()
    model = DiT(
        num_layers=1,
        num_heads=networks.HEADS,
        dim=networks.DIM,
        latent_channels=networks.CHANNELS,
        grid=networks.GRID,
        num_classes=networks.CLASSES,
    ).eval()
    missing, unexpected = model.load_state_dict(weights_of("dit"), strict=False)
    assert unexpected == []
    assert set(missing) == {"pos_embed", "feat_rope.freqs_cos", "feat_rope.freqs_sin"}
    with torch.no_grad():
        found = model(values["dit.x"], values["dit.t"].float(), values["dit.labels"]).prediction
    assert_relative(found, values["dit.prediction"], 1e-5)
