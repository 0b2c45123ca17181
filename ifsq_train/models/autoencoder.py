"""The convolutional image tokenizer of the paper (released modeling_imagefsqvae.py).

Parameter names equal those of the released checkpoints, so that they load unchanged.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.channels import seen_by
from ifsq_train.models.fingerprint import update_with_tensors
from ifsq_train.models.quantizers.base import Quantizer, QuantizerOutput

F16_MULTIPLIERS = (1, 1, 2, 4, 4)
F8_MULTIPLIERS = (1, 2, 4, 4)


class ImageNorm(nn.GroupNorm):
    """GroupNorm of images whose layout it keeps.

    torch's kernel for GPUs gives channels first whatever it gets, so that the next convolution
    reorders everything. Compiled for a GPU it is written out: statistics in fp32, the result in
    the input's precision and layout, in one kernel with the activation after it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Float [B, C, H, W] -> the same."""
        if input.device.type == "cuda" and torch.compiler.is_compiling():
            return self.written_out(input)
        return super().forward(input)

    def written_out(self, x: Tensor) -> Tensor:
        """The norm as sums and products; [B, C, H, W] in x's precision."""
        wide = x.float()
        parts = wide.unflatten(1, (self.num_groups, -1))
        variance, mean = torch.var_mean(parts, dim=(2, 3, 4), correction=0, keepdim=True)
        inverse = (variance + self.eps).rsqrt()
        scale = self.weight.float().view(self.num_groups, -1) * inverse[:, :, :, 0, 0]
        shift = self.bias.float().view(self.num_groups, -1) - mean[:, :, :, 0, 0] * scale
        flat = (*scale.flatten(1).shape, 1, 1)
        return (wide * scale.view(flat) + shift.view(flat)).to(x.dtype)


def _norm(channels: int, groups: int) -> ImageNorm:
    return ImageNorm(groups, channels, eps=1e-6)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, plus the input."""

    def __init__(self, in_channels: int, out_channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(in_channels, norm_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _norm(out_channels, norm_groups)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        else:
            self.nin_shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, in, H, W] -> [B, out, H, W]."""
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = self.conv2(F.silu(self.norm2(hidden)))
        return self.nin_shortcut(x) + hidden


class AttentionBlock(nn.Module):
    """Single-head attention over all positions, after GroupNorm, plus the input.

    In LlamaGen's public VQ tokenizers; no tokenizer of the paper has it.
    """

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, norm_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, H, W] -> the same shape."""
        normed = self.norm(x)
        rows = (part(normed).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(*rows)
        return x + self.proj_out(mixed.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    """3x3 convolution with stride 2; one row and column of zeros at the bottom and right."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, H, W] -> [B, C, H/2, W/2]."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbour by 2, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, C, H, W] -> [B, C, 2H, 2W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks of one resolution, attention after each if any, and the resampling."""

    def __init__(self, blocks: list[ResidualBlock], attention: list[AttentionBlock]) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        if attention:
            self.attn = nn.ModuleList(attention)

    def forward(self, x: Tensor) -> Tensor:
        attention = self.attn if "attn" in self._modules else [None] * len(self.block)
        for block, attend in zip(self.block, attention, strict=True):
            x = block(x)
            if attend is not None:
                x = attend(x)
        for resample in ("downsample", "upsample"):
            if resample in self._modules:
                x = self._modules[resample](x)  # pyright: ignore[reportOptionalCall]
        return x


def _blocks(count: int, in_channels: int, out_channels: int, groups: int) -> list[ResidualBlock]:
    sizes = [in_channels] + [out_channels] * count
    return [ResidualBlock(before, after, groups) for before, after in pairwise(sizes)]


def _attention(wanted: bool, count: int, channels: int, groups: int) -> list[AttentionBlock]:
    return [AttentionBlock(channels, groups) for _ in range(count if wanted else 0)]


def _middle(count: int, channels: int, groups: int, attention: bool) -> nn.Sequential:
    blocks: list[nn.Module] = list(_blocks(count, channels, channels, groups))
    if attention:
        blocks.insert(1, AttentionBlock(channels, groups))
    return nn.Sequential(*blocks)


class Encoder(nn.Module):
    """Image to features of `out_channels` at 1 / 2**(levels - 1) of the resolution.

    Args:
        base, multipliers: width of the first level, and of each over it.
        num_res_blocks: per level and in the middle.
        out_channels: of the result.
        groups: of the norms.
        attention: in the deepest level and the middle.
        image_channels: 3, or 1 for grey.
    """

    def __init__(
        self,
        base: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        out_channels: int,
        groups: int,
        attention: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [base * multiplier for multiplier in multipliers]
        self.image_channels = image_channels
        self.conv_in = nn.Conv2d(image_channels, base, 3, padding=1)
        self.down = nn.ModuleList()
        before = base
        for level, width in enumerate(widths):
            deepest = level == len(widths) - 1
            stage = _Level(
                _blocks(num_res_blocks, before, width, groups),
                _attention(attention and deepest, num_res_blocks, width, groups),
            )
            if not deepest:
                stage.downsample = Downsample(width)
            self.down.append(stage)
            before = width
        self.mid_block = _middle(num_res_blocks, before, groups, attention)
        self.norm_out = _norm(before, groups)
        self.conv_out = nn.Conv2d(before, out_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [-1, 1], or grey where it takes grey -> [B, out_channels, h, w]."""
        x = self.conv_in(seen_by(images, self.image_channels))
        for stage in self.down:
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Features of `in_channels` to an image; not clamped. Arguments as the encoder's."""

    def __init__(
        self,
        base: int,
        multipliers: Sequence[int],
        num_res_blocks: int,
        in_channels: int,
        groups: int,
        attention: bool = False,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        widths = [base * multiplier for multiplier in multipliers]
        before = widths[-1]
        self.conv_in = nn.Conv2d(in_channels, before, 3, padding=1)
        self.mid_block = _middle(num_res_blocks, before, groups, attention)
        stages: list[_Level] = []
        for level in reversed(range(len(widths))):
            stage = _Level(
                _blocks(num_res_blocks + 1, before, widths[level], groups),
                _attention(
                    attention and level == len(widths) - 1,
                    num_res_blocks + 1,
                    widths[level],
                    groups,
                ),
            )
            if level > 0:
                stage.upsample = Upsample(widths[level])
            stages.insert(0, stage)
            before = widths[level]
        self.up = nn.ModuleList(stages)
        self.norm_out = _norm(before, groups)
        self.conv_out = nn.Conv2d(before, image_channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Float [B, in_channels, h, w] -> [B, image_channels, H, W]."""
        x = self.mid_block(self.conv_in(features))
        for stage in reversed(self.up):
            x = stage(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Tokenizer(nn.Module):
    """Encoder, 1x1 convolution, quantizer, 1x1 convolution, decoder.

    Args:
        quantizer: the bottleneck; decides the latent channels.
        channel_multipliers: width of each level over `base_channels`; (1, 1, 2, 4, 4) is f16,
            (1, 2, 4, 4) is f8.
        base_channels, num_res_blocks, z_channels, norm_groups: 128, 2, 4, 32 in the paper.
        attention: in the deepest level and the middle (LlamaGen's public VQ tokenizers).
        double_z: the encoder gives 2 * z_channels, also where no variance is wanted (paper).
        image_channels: 3, or 1: the luminance of images is encoded and grey ones are decoded.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        *,
        channel_multipliers: Sequence[int] = F16_MULTIPLIERS,
        base_channels: int = 128,
        num_res_blocks: int = 2,
        z_channels: int = 4,
        norm_groups: int = 32,
        attention: bool = False,
        double_z: bool = True,
        image_channels: int = 3,
    ) -> None:
        super().__init__()
        shape = (base_channels, channel_multipliers, num_res_blocks)
        features = 2 * z_channels if double_z else z_channels
        ends = (norm_groups, attention, image_channels)
        self.encoder = Encoder(*shape, features, *ends)
        self.quant_conv = nn.Conv2d(features, quantizer.moment_channels, 1)
        self.quantize = quantizer
        self.post_quant_conv = nn.Conv2d(quantizer.num_channels, z_channels, 1)
        self.decoder = Decoder(*shape, z_channels, *ends)
        self.downsample_ratio = 2 ** (len(channel_multipliers) - 1)
        self._architecture: dict[str, Any] = {
            "channel_multipliers": list(channel_multipliers),
            "base_channels": base_channels,
            "num_res_blocks": num_res_blocks,
            "z_channels": z_channels,
            "norm_groups": norm_groups,
        }
        # Only where they are not the paper's, so that fingerprints of its tokenizers stay.
        if attention:
            self._architecture["attention"] = True
        if not double_z:
            self._architecture["double_z"] = False
        if image_channels != 3:
            self._architecture["image_channels"] = image_channels

    @property
    def image_channels(self) -> int:
        """Of the images it makes: 3, or 1 for grey."""
        return self.encoder.image_channels

    def seen(self, images: Tensor) -> Tensor:
        """What it sees of images [B, 3, H, W], and is to reconstruct: [B, image_channels, H, W]."""
        return seen_by(images, self.image_channels)

    def encode(self, images: Tensor) -> QuantizerOutput:
        """Images float [B, 3, H, W] in [-1, 1] -> latents [B, C, h, w] and indices [B, h, w, G]."""
        return self.quantize(self.quant_conv(self.encoder(images)))

    def decode(self, latents: Tensor) -> Tensor:
        """Latents float [B, C, h, w] -> images [B, image_channels, H, W], nominally in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents))

    def forward(self, images: Tensor) -> tuple[Tensor, QuantizerOutput]:
        """Reconstruction float [B, image_channels, H, W] and what the bottleneck gave."""
        quantized = self.encode(images)
        return self.decode(quantized.latents), quantized

    def spec(self) -> dict[str, Any]:
        """JSON-able description of architecture and bottleneck."""
        return {**self._architecture, "quantizer": self.quantize.spec()}

    def fingerprint(self) -> str:
        """sha256 (hex) over the description and every parameter; names what made a token.

        Running statistics are left out where they change no output.
        """
        digest = hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode())
        update_with_tensors(digest, dict(self.named_parameters()))
        if buffers := self.quantize.deciding_buffers():
            update_with_tensors(digest, buffers)
        return digest.hexdigest()
