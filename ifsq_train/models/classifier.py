"""A small convolutional classifier whose features judge and teach."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.autoencoder import ResidualBlock
from ifsq_train.models.fingerprint import update_with_tensors


class Classifier(nn.Module):
    """Levels of residual blocks, a mean over positions, one linear layer.

    Args:
        num_classes: outputs.
        channels: width of each level; there is a convolution with stride 2 between two.
        blocks: residual blocks per level.
        norm_groups: of every GroupNorm.
        dropout: of the pooled features in training mode.
    """

    def __init__(
        self,
        num_classes: int,
        channels: Sequence[int] = (64, 128, 256),
        *,
        blocks: int = 2,
        norm_groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features = num_classes, channels[-1]
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.levels = nn.ModuleList()
        before = channels[0]
        for place, width in enumerate(channels):
            parts: list[nn.Module] = []
            if place:
                parts.append(nn.Conv2d(before, width, 3, stride=2, padding=1))
            parts += [ResidualBlock(width, width, norm_groups) for _ in range(blocks)]
            self.levels.append(nn.Sequential(*parts))
            before = width
        self.norm = nn.GroupNorm(norm_groups, before, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(before, num_classes)

    def maps(self, images: Tensor) -> Tensor:
        """Feature maps [B, num_features, h, w] of images float [B, 3, H, W] in [-1, 1]."""
        hidden = self.stem(images)
        for level in self.levels:
            hidden = level(hidden)
        return F.silu(self.norm(hidden))

    def features(self, images: Tensor) -> Tensor:
        """Features [B, num_features] before the last layer."""
        return self.maps(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Logits [B, num_classes] of images float [B, 3, H, W] in [-1, 1]."""
        return self.head(self.dropout(self.features(images)))

    def fingerprint(self) -> str:
        """sha256 (hex) over shape and weights."""
        shape = {"classes": self.num_classes, "features": self.num_features}
        digest = hashlib.sha256(json.dumps(shape, sort_keys=True).encode())
        update_with_tensors(digest, self.state_dict())
        return digest.hexdigest()


class ClassifierTeacher(nn.Module):
    """Patch features of a classifier on a grid, for alignment (REPA).

    Args:
        network: frozen.
        grid: height and width of what it gives; maps of another size are resampled.
    """

    def __init__(self, network: Classifier, grid: tuple[int, int]) -> None:
        super().__init__()
        self.network, self.grid = network.eval().requires_grad_(False), grid
        self.dim = network.num_features

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """[B, grid[0] * grid[1], dim] of images float [B, 3, H, W] in [-1, 1], row by row."""
        maps = self.network.maps(images)
        if tuple(maps.shape[2:]) != self.grid:
            maps = F.interpolate(maps, self.grid, mode="bilinear", align_corners=False)
        return maps.flatten(2).transpose(1, 2)
