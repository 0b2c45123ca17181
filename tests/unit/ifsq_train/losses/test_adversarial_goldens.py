"""GAN terms and the split backward give what the released objective gives."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from goldens import Golden, assert_relative
from torch import nn

from ifsq_train.losses.adversarial import (
    adaptive_weight,
    conv_weight_gradient,
    discriminator_loss,
    generator_loss,
)
from ifsq_train.losses.reconstruction import pixel_loss
from ifsq_train.models.discriminator import PatchDiscriminator


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


@pytest.mark.parametrize(("case", "kind"), [("post_l1", "l1"), ("post_l2", "l2")])
def test_split_backward_equals_the_released_objective(golden: Golden, case: str, kind: str) -> None:
    """Adaptive weight and all gradients without ever differentiating by the last layer."""
    layer, network = last_layer(golden), discriminator(golden).train()
    feat = golden["feat"].clone().requires_grad_()
    reconstruction = layer(feat)
    leaf = reconstruction.detach().requires_grad_()
    rec = pixel_loss(leaf, golden["x"], kind)  # pyright: ignore
    # The recorded l2 case has the mean squared error as its perceptual stand-in, weight 0.7.
    nll = rec + (0.7 * F.mse_loss(leaf, golden["x"]) if kind == "l2" else 0.0)
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


def test_conv_weight_gradient_equals_autograd(golden: Golden) -> None:
    layer = last_layer(golden)
    output = layer(golden["feat"])
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (output * cotangent).sum().backward()
    assert layer.weight.grad is not None
    mine = conv_weight_gradient(layer, golden["feat"], cotangent)
    assert_relative(mine, layer.weight.grad)
