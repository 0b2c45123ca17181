"""The released encoder written plainly: activation as x * sigmoid(x), padding by a copy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from reference_quantizer import ReferenceFsq
from torch import Tensor, nn

from ifsq_train.models.autoencoder import Tokenizer


def swish(x: Tensor) -> Tensor:
    """The released activation."""
    return x * torch.sigmoid(x)


class ReferenceEncoder(nn.Module):
    """Takes the weights of a `Tokenizer`, shares no code of its forward pass."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.encoder, self.quant_conv = tokenizer.encoder, tokenizer.quant_conv
        self.quantize = ReferenceFsq(list(tokenizer.quantize.level_counts), 1.6).eval()  # type: ignore

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, 3, H, W] -> codes [B, C, h, w] and indices [B, h, w, 1]."""
        encoder = self.encoder
        h = encoder.conv_in(x)
        for level in encoder.down:
            for block in level.block:  # type: ignore
                h = residual_block(block, h)
            if hasattr(level, "downsample"):
                h = level.downsample.conv(F.pad(h, (0, 1, 0, 1), mode="constant", value=0))  # type: ignore
        for block in encoder.mid_block:
            h = residual_block(block, h)
        h = encoder.conv_out(swish(encoder.norm_out(h)))
        return self.quantize(self.quant_conv(h))


def residual_block(block: nn.Module, x: Tensor) -> Tensor:
    """Norm, activation, convolution, twice; plus the input."""
    h = block.conv1(swish(block.norm1(x)))  # type: ignore
    h = block.conv2(swish(block.norm2(h)))  # type: ignore
    return block.nin_shortcut(x) + h  # type: ignore
