"""DINOv2 as the teacher whose patch features generators are aligned with (REPA).

Parameter names are those of the published ``dinov2_vit?14_pretrain.pth`` files. The teacher is
frozen and never differentiated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.weight_files import read_tensors

Size = Literal["S", "B", "L"]
SIZES: dict[Size, dict[str, int]] = {
    "S": {"num_layers": 12, "dim": 384, "num_heads": 6},
    "B": {"num_layers": 12, "dim": 768, "num_heads": 12},
    "L": {"num_layers": 24, "dim": 1024, "num_heads": 16},
}
PATCH = 14
_TRAINED_GRID = 37
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Attention(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class _Block(nn.Module):
    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = _Attention(dim, num_heads)
        self.ls1 = _LayerScale(dim)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = _FeedForward(dim)
        self.ls2 = _LayerScale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _PatchEmbed(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, PATCH, stride=PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class DinoTeacher(nn.Module):
    """DINOv2 vision transformer with 14-pixel patches, giving normed patch features.

    Args:
        num_layers, dim, num_heads: see `SIZES`.
        grid: patches per side of what it gives; the generator's token grid. Images are resized to
            14 times as many pixels.
        num_registers: extra tokens without a position, of the ``_reg4`` models.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        num_layers: int,
        dim: int,
        num_heads: int,
        grid: tuple[int, int],
        num_registers: int = 0,
    ) -> None:
        super().__init__()
        self.grid, self.dim, self.num_registers = grid, dim, num_registers
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, dim))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid[0] * grid[1], dim))
        self.patch_embed = _PatchEmbed(dim)
        self.blocks = nn.ModuleList(_Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).view(1, 3, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Patch features of images, without a graph.

        Args:
            images: float [B, 3, H, W] in [-1, 1], the generator's own augmented crop.

        Returns:
            [B, grid[0] * grid[1], dim], row by row; no class token.
        """
        x = ((images + 1.0) / 2.0 - self.mean) / self.std
        size = (self.grid[0] * PATCH, self.grid[1] * PATCH)
        x = F.interpolate(x, size, mode="bicubic", align_corners=False)
        patches = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(len(patches), -1, -1), patches], 1) + self.pos_embed
        if self.num_registers:
            registers = self.register_tokens.expand(len(x), -1, -1)
            x = torch.cat([x[:, :1], registers.to(x.dtype), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 1 + self.num_registers :]


def resample_positions(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Position table [1, 1 + n * n, D] of a square grid to another grid; the class row stays."""
    side = round((positions.shape[1] - 1) ** 0.5)
    if grid == (side, side):
        return positions
    table = positions[:, 1:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
    table = F.interpolate(table, grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([positions[:, :1].float(), table.flatten(2).transpose(1, 2)], 1)


def load_dino(path: Path, *, size: Size, grid: tuple[int, int]) -> DinoTeacher:
    """The teacher from a local .pth or .safetensors file, frozen, in eval mode.

    Args:
        path: a published DINOv2 backbone, with or without registers.
        size: which one it is.
        grid: patches per side to give features for, see `DinoTeacher`.

    Raises:
        ValueError: not such a file; names tensors that are missing, left over or misshapen.
    """
    weights = read_tensors(path)
    weights.pop("mask_token", None)
    positions = weights.get("pos_embed")
    if positions is None or positions.shape[1] != 1 + _TRAINED_GRID**2:
        found = "none" if positions is None else str(tuple(positions.shape))
        raise ValueError(
            f"{path}: not a DINOv2 backbone; pos_embed [1, {1 + _TRAINED_GRID**2}, D] is needed,"
            f" found {found}"
        )
    weights["pos_embed"] = resample_positions(positions, grid)
    registers = weights.get("register_tokens")
    count = 0 if registers is None or registers.dim() != 3 else registers.shape[1]
    teacher = DinoTeacher(**SIZES[size], grid=grid, num_registers=count)
    try:
        teacher.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return teacher.eval().requires_grad_(False)
