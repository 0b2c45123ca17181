"""GAN terms and the split backward give what the released objective gives."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.losses.adversarial import (
    adaptive_weight,
    conv_weight_gradient,
    discriminator_loss,
    generator_loss,
)
from ifsq_train.losses.reconstruction import pixel_loss
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.quantizers import LFQ
from ifsq_train.models.quantizers.continuous import kl_divergence, split_moments
from ifsq_train.models.quantizers.lfq import lfq_entropy_factor
from tests.support.goldens import Golden, assert_relative


@pytest.fixture(scope="module")
def golden(golden_dir: Path) -> Golden:
    return Golden(golden_dir, "losses")


def discriminator(golden: Golden) -> PatchDiscriminator:
    network = PatchDiscriminator(golden.config["ndf"], golden.config["n_layers"])
    network.load_state_dict(golden.under("disc."))
    return network


def test_discriminator_forward(golden: Golden) -> None:
    network = discriminator(golden)
    assert_relative(network.eval()(golden["x"]), golden["disc_out.eval"])
    assert_relative(network.train()(golden["x"]), golden["disc_out.train"])
    buffers = dict(network.named_buffers())
    for name, expected in golden.under("disc_bn_after.").items():
        assert_relative(buffers[name], expected)


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_discriminator_loss(golden: Golden, kind: str) -> None:
    loss = discriminator_loss(golden["logits.real"], golden["logits.fake"], kind)  # pyright: ignore
    assert_relative(loss, golden[kind])


def last_layer(golden: Golden) -> nn.Conv2d:
    layer = nn.Conv2d(4, 3, 3, padding=1)
    layer.load_state_dict({"weight": golden["last.weight"], "bias": golden["last.bias"]})
    return layer


def nll_loss(leaf: Tensor, images: Tensor, kind: str, perceptual_weight: float) -> Tensor:
    """Pixel loss plus the recorded stand-in for the perceptual distance, a mean square."""
    pixel = pixel_loss(leaf, images, kind)  # pyright: ignore
    return pixel + perceptual_weight * F.mse_loss(leaf, images)


# Case: pixel loss, weight of the perceptual stand-in.
CASES = {
    "post_l1": ("l1", 0.0),
    "post_l2": ("l2", 0.7),
    "post_kl": ("l1", 0.7),
    "vq": ("l1", 0.7),
    "lfq": ("l1", 0.7),
}


@pytest.mark.parametrize("case", CASES)
def test_split_backward_equals_the_released_objective(golden: Golden, case: str) -> None:
    """Adaptive weight and all gradients without ever differentiating by the last layer."""
    kind, perceptual_weight = CASES[case]
    layer, network = last_layer(golden), discriminator(golden).train()
    feat = golden["feat"].clone().requires_grad_()
    reconstruction = layer(feat)
    leaf = reconstruction.detach().requires_grad_()
    nll = nll_loss(leaf, golden["x"], kind, perceptual_weight)
    assert_relative(nll, golden[f"{case}.nll_loss"])
    (nll_gradient,) = torch.autograd.grad(nll, leaf)
    adversarial = generator_loss(network(leaf))
    assert_relative(adversarial, golden[f"{case}.g_loss"])
    (adversarial_gradient,) = torch.autograd.grad(adversarial, leaf)
    gradients = [
        conv_weight_gradient(layer, feat.detach(), gradient)
        for gradient in (nll_gradient, adversarial_gradient)
    ]
    weight = golden.config["disc_weight"] * adaptive_weight(gradients[0], gradients[1])
    assert_relative(weight, golden[f"{case}.d_weight"])
    (reconstruction * (nll_gradient + weight * adversarial_gradient)).sum().backward()
    assert feat.grad is not None
    assert layer.weight.grad is not None
    assert_relative(layer.weight.grad, golden[f"{case}.grad_last"])
    assert_relative(feat.grad[0, :2], golden[f"{case}.grad_feat0"])
    total = nll + weight * adversarial + bottleneck_loss(golden, case)
    assert_relative(total, golden[f"{case}.total"])


def bottleneck_loss(golden: Golden, case: str) -> Tensor:
    """The terms of the quantizer that belong to a recorded case."""
    if case == "post_kl":
        mean, log_variance = split_moments(golden["post_kl.parameters"])
        kl = kl_divergence(mean, log_variance).mean()
        assert_relative(kl, golden["post_kl.kl_loss"])
        return 1e-3 * kl
    if case == "vq":
        return golden.config["vq_codebook_weight"] * golden["vq.codebook_loss"]
    if case == "lfq":
        output = LFQ(6, entropy_weight=1.0, commitment_weight=0.25)(golden["lfq.x"])
        for name in ("codebook_entropy", "sample_entropy"):
            recorded = "per_sample_entropy" if name == "sample_entropy" else name
            assert_relative(output.stats[name], golden[f"lfq.{recorded}"])
        return lfq_entropy_factor(500) * output.losses["entropy"] + output.losses["commitment"]
    return torch.zeros(())


def test_before_its_start_the_adversarial_term_is_left_out(golden: Golden) -> None:
    layer = last_layer(golden)
    feat = golden["feat"].clone().requires_grad_()
    loss = pixel_loss(layer(feat), golden["x"], "l1")
    assert_relative(loss, golden["pre.total"])
    loss.backward()
    assert layer.weight.grad is not None
    assert feat.grad is not None
    assert_relative(layer.weight.grad, golden["pre.grad_last"])
    assert_relative(feat.grad[0, :2], golden["pre.grad_feat0"])


@pytest.mark.parametrize(("case", "kind"), [("post_l1", "hinge"), ("post_l2", "vanilla")])
def test_discriminator_step(golden: Golden, case: str, kind: str) -> None:
    network = discriminator(golden).train()
    fake = network(last_layer(golden)(golden["feat"]).detach())
    real = network(golden["x"])
    assert_relative(real.mean(), golden[f"{case}.logits_real"])
    assert_relative(fake.mean(), golden[f"{case}.logits_fake"])
    loss = discriminator_loss(real, fake, kind)  # pyright: ignore
    assert_relative(loss, golden[f"{case}.disc_loss"])


def test_conv_weight_gradient_equals_autograd(golden: Golden) -> None:
    layer = last_layer(golden)
    output = layer(golden["feat"])
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (output * cotangent).sum().backward()
    assert layer.weight.grad is not None
    mine = conv_weight_gradient(layer, golden["feat"], cotangent)
    assert_relative(mine, layer.weight.grad)
