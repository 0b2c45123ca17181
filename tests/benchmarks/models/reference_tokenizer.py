"""The released encoder written plainly: activation as x * sigmoid(x), padding by a copy."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.autoencoder import Tokenizer
from tests.benchmarks.models.reference_quantizer import ReferenceFsq


def swish(x: Tensor) -> Tensor:
    """The released activation."""
    return x * torch.sigmoid(x)


class ReferenceEncoder(nn.Module):
    """Takes the weights of a `Tokenizer`, shares no code of its forward pass."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.quant_conv = tokenizer.encoder, tokenizer.quant_conv
        quantizer: Any = tokenizer.quantize
        self.quantize = ReferenceFsq(list(quantizer.level_counts), 1.6).eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> codes [B, C, h, w] and indices [B, h, w, 1]."""
        encoder: Any = self.encoder
        h = encoder.conv_in(x)
        for level in encoder.down:
            for block in level.block:
                h = residual_block(block, h)
            if hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1), mode="constant", value=0))
        for block in encoder.mid_block:
            h = residual_block(block, h)
        h = encoder.conv_out(swish(encoder.norm_out(h)))
        return self.quantize(self.quant_conv(h))


def residual_block(block: Any, x: Tensor) -> Tensor:
    """Norm, activation, convolution, twice; plus the input."""
    h = block.conv1(swish(block.norm1(x)))
    h = block.conv2(swish(block.norm2(h)))
    return block.nin_shortcut(x) + h
