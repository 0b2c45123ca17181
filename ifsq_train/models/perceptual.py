"""LPIPS: a perceptual distance from pretrained features (Zhang et al. 2018).

Weights come from local files; nothing is downloaded. VGG16 is the training loss of the released
code, AlexNet with ``spatial`` its evaluation.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.channels import as_rgb
from ifsq_train.models.weight_files import read_tensors

Backbone = Literal["vgg16", "alexnet"]

# Convolution widths of VGG16 by stage; the tap is the last ReLU of each stage.
_VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_TAP_WIDTHS = {"vgg16": (64, 128, 256, 512, 512), "alexnet": (64, 192, 384, 256, 256)}
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class TappedFeatures(nn.Module):
    """A stack of layers whose outputs at five ReLUs are wanted.

    Parameter names are torchvision's: ``features.<layer>.weight`` and ``.bias``.
    """

    def __init__(self, layers: list[nn.Module], taps: list[int]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.taps = taps

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float [B, 3, H, W] -> five feature maps."""
        maps = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self.taps:
                maps.append(images)
        return maps


def vgg16_features() -> TappedFeatures:
    """VGG16 up to its last convolution."""
    layers: list[nn.Module] = []
    taps: list[int] = []
    channels = 3
    for stage, widths in enumerate(_VGG16_STAGES):
        if stage:
            layers.append(nn.MaxPool2d(2, 2))
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        taps.append(len(layers) - 1)
    return TappedFeatures(layers, taps)


def alexnet_features() -> TappedFeatures:
    """AlexNet up to its last convolution."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 11, stride=4, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
    ]
    return TappedFeatures(layers, [1, 4, 7, 9, 11])


class Lpips(nn.Module):
    """Weighted squared distance of unit-length features, summed over taps.

    Args:
        backbone: which network's features.
        spatial: give a map instead of its mean: every tap's distance is upsampled to the image.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: Backbone = "vgg16", *, spatial: bool = False) -> None:
        super().__init__()
        self.backbone = vgg16_features() if backbone == "vgg16" else alexnet_features()
        self.heads = nn.ModuleList(
            nn.Conv2d(width, 1, 1, bias=False) for width in _TAP_WIDTHS[backbone]
        )
        self.spatial = spatial
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of image batches float [B, 3 or 1, H, W] in [-1, 1]; [B], or [B, 1, H, W]."""
        maps = self.tap_distances(first, second)
        if not self.spatial:
            return torch.stack([one.mean(dim=(1, 2, 3)) for one in maps]).sum(0)
        size = first.shape[-2:]
        resized = [F.interpolate(one, size, mode="bilinear", align_corners=False) for one in maps]
        return torch.stack(resized).sum(0)

    def tap_distances(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Weighted squared distance at every tap, float [B, 1, h, w] each."""
        pairs = [self.backbone((as_rgb(x) - self.shift) / self.scale) for x in (first, second)]
        return [
            head((_unit(a) - _unit(b)).square())
            for a, b, head in zip(*pairs, self.heads, strict=True)
        ]


def _unit(features: Tensor) -> Tensor:
    # vector_norm has a zero gradient at zero, where that of the square root would be infinite.
    wide = torch.promote_types(features.dtype, torch.float32)
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True, dtype=wide)
    return features / (norm + 1e-10)


def load_lpips(*paths: Path, backbone: Backbone = "vgg16", spatial: bool = False) -> Lpips:
    """LPIPS from local files, frozen.

    Args:
        paths: one or more .safetensors or .pth files that together have the backbone's
            convolutions, ``features.<i>.weight|bias`` as torchvision's, and the linear heads,
            ``lin<k>.weight`` or ``lin<k>.model.1.weight`` (lpips package) [1, C, 1, 1].
            A classifier is ignored.
        backbone, spatial: see `Lpips`.

    Raises:
        ValueError: not such files; names what is missing or of another shape.
    """
    network = Lpips(backbone, spatial=spatial)
    renamed: dict[str, Tensor] = {}
    for path in paths:
        for key, value in read_tensors(path).items():
            head = re.fullmatch(r"lin(\d)(\.model\.1)?\.weight", key)
            if head:
                renamed[f"heads.{head[1]}.weight"] = value
            elif not key.startswith("classifier."):
                renamed[f"backbone.{key}"] = value
    try:
        network.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        names = ", ".join(str(path) for path in paths)
        raise ValueError(f"{names}: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)
