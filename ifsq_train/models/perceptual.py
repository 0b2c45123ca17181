"""LPIPS: a perceptual distance from pretrained features (Zhang et al. 2018).

The weights come from a local safetensors file; nothing is downloaded. Its keys are those of
torchvision's ``features.*`` for the backbone and ``lin0`` .. ``lin4`` for the linear heads.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# Convolution widths of VGG16 by stage; the tap is the last ReLU of each stage.
_VGG16_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class Vgg16Features(nn.Module):
    """The five ReLU taps of VGG16, with torchvision's parameter names."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []
        channels = 3
        for stage, widths in enumerate(_VGG16_STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2, 2))
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            self.taps.append(len(layers) - 1)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Float [B, 3, H, W] -> five feature maps."""
        taps = []
        for index, layer in enumerate(self.features):
            images = layer(images)
            if index in self.taps:
                taps.append(images)
        return taps


class Lpips(nn.Module):
    """Weighted squared distance of unit-length features, mean over space, sum over taps."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.backbone = Vgg16Features()
        widths = [stage[-1] for stage in _VGG16_STAGES]
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Distance of two image batches float [B, 3, H, W] in [-1, 1]; [B]."""
        pairs = [self.backbone((x - self.shift) / self.scale) for x in (first, second)]
        total = first.new_zeros(first.shape[0])
        for a, b, head in zip(*pairs, self.heads, strict=True):
            difference = (_unit(a) - _unit(b)).square()
            total = total + head(difference).mean(dim=(1, 2, 3))
        return total


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + 1e-10)


def load_lpips(path: Path) -> Lpips:
    """LPIPS with VGG16 from a local file, frozen.

    Args:
        path: safetensors with ``features.<i>.weight|bias`` and ``lin<k>.weight`` [1, C, 1, 1].

    Raises:
        ValueError: not such a file; names what is missing or of another shape.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    network = Lpips()
    renamed = {}
    for key, value in tensors.items():
        name = f"heads.{key[3:]}" if key.startswith("lin") else f"backbone.{key}"
        renamed[name] = value
    try:
        network.load_state_dict(renamed, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    return network.eval().requires_grad_(False)
