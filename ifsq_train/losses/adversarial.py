"""Adversarial terms of tokenizer training and their adaptive weight (Esser et al. 2021)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight


def generator_loss(logits_fake: Tensor) -> Tensor:
    """Minus the mean logit of reconstructions; scalar."""
    return -logits_fake.mean()


def discriminator_loss(
    logits_real: Tensor, logits_fake: Tensor, kind: Literal["hinge", "vanilla"]
) -> Tensor:
    """Half the sum of the real and the fake term; scalar."""
    if kind == "hinge":
        real, fake = F.relu(1.0 - logits_real), F.relu(1.0 + logits_fake)
    else:
        real, fake = F.softplus(-logits_real), F.softplus(logits_fake)
    return 0.5 * (real.mean() + fake.mean())


def adaptive_weight(
    reconstruction_gradient: Tensor, adversarial_gradient: Tensor, *, maximum: float = 1e6
) -> Tensor:
    """Ratio of the norms of two gradients of the last layer's weight, in [0, maximum].

    The released code adds 1e-6 to the denominator and clamps at 1e6 (1e-4 and 1e4 in VQGAN).
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + 1e-6)
    return ratio.clamp(0.0, maximum).detach()


def conv_weight_gradient(layer: nn.Module, inputs: Tensor, output_gradient: Tensor) -> Tensor:
    """Gradient of a 3x3 convolution's weight from the gradient of its output.

    Args:
        layer: the convolution.
        inputs: its detached input [B, Cin, H, W].
        output_gradient: gradient with respect to its output [B, Cout, H, W].

    Returns:
        fp32 [Cout, Cin, kh, kw]; equal to what autograd would give for `layer.weight`.
    """
    assert isinstance(layer, nn.Conv2d)
    kernel = layer.kernel_size
    shape = (layer.out_channels, layer.in_channels, kernel[0], kernel[1])
    with torch.autocast(inputs.device.type, enabled=False):
        return conv2d_weight(
            inputs.float(),
            shape,
            output_gradient.float(),
            stride=layer.stride,  # pyright: ignore[reportArgumentType]
            padding=layer.padding,  # pyright: ignore[reportArgumentType]
            dilation=layer.dilation,  # pyright: ignore[reportArgumentType]
        )
