"""Inception-v3 as the FID needs it (Szegedy et al. 2015; the pytorch-fid port of its weights).

It differs from the usual Inception-v3: average pools leave padding out of their count, the last
block pools by maximum, and the batch norms come from TensorFlow. Parameter names are those of the
``pt_inception-2015-12-05`` weight file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.channels import as_rgb
from ifsq_train.models.weight_files import read_tensors

NUM_FEATURES = 2048
NUM_CLASSES = 1008
# ADM's spatial features: the first channels of one branch of Mixed_6d, 17 x 17 each.
_SPATIAL_CHANNELS, _SPATIAL_SIDE = 7, 17
NUM_SPATIAL = _SPATIAL_CHANNELS * _SPATIAL_SIDE**2
_SIDE = 299

Size = tuple[int, int]
Pool = Literal["average", "maximum", "halve"]


class InceptionFeatures(NamedTuple):
    """fp32 of B images: pooled [B, 2048], spatial [B, 2023], and shares [B, 1008] of the classes
    where the network has its classifier (None otherwise)."""

    pooled: Tensor
    spatial: Tensor
    shares: Tensor | None


class Unit(NamedTuple):
    """A `ConvUnit` to build, and its name."""

    name: str
    width: int
    kernel: Size
    stride: int
    padding: Size


class ConvUnit(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, before: int, unit: Unit) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            before, unit.width, unit.kernel, unit.stride, unit.padding, bias=False
        )
        self.bn = nn.BatchNorm2d(unit.width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, before, H, W] -> [B, width, H', W']."""
        return F.relu(self.bn(self.conv(x)))


def _unit(name: str, width: int, height: int = 1, across: int = 1, stride: int = 1) -> Unit:
    """A unit that keeps the resolution, or halves it without padding."""
    padding = (height // 2, across // 2) if stride == 1 else (0, 0)
    return Unit(name, width, (height, across), stride, padding)


class Mixed(nn.Module):
    """Parallel chains of units and a pool, concatenated.

    Args:
        before: channels of the input.
        chains: units in order.
        forks: by chain number, two more units that both read the chain's end.
        pool: ``halve`` is a strided maximum; the others are followed by a 1x1 unit.
        pool_width: channels of that unit.
    """

    def __init__(
        self,
        before: int,
        chains: list[list[Unit]],
        forks: dict[int, tuple[Unit, Unit]],
        pool: Pool,
        pool_width: int = 0,
    ) -> None:
        super().__init__()
        self._chains = [[unit.name for unit in chain] for chain in chains]
        self._forks = {number: [unit.name for unit in pair] for number, pair in forks.items()}
        self._pool: Pool = pool
        for number, chain in enumerate(chains):
            width = before
            for unit in chain:
                self.add_module(unit.name, ConvUnit(width, unit))
                width = unit.width
            for unit in forks.get(number, ()):
                self.add_module(unit.name, ConvUnit(width, unit))
        if pool != "halve":
            self.branch_pool = ConvUnit(before, _unit("branch_pool", pool_width))

    def forward(self, x: Tensor) -> Tensor:
        """Float [B, before, H, W] -> all parts' channels, [B, C, H', W']."""
        parts = []
        for number, chain in enumerate(self._chains):
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            fork = self._forks.get(number)
            parts += [self.get_submodule(name)(y) for name in fork] if fork else [y]
        return torch.cat([*parts, self._pooled(x)], 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self._pool == "halve":
            return F.max_pool2d(x, 3, stride=2)
        if self._pool == "average":
            pooled = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        else:
            pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        return self.branch_pool(pooled)


def _mixed_5(before: int, pool_width: int) -> Mixed:
    chains = [
        [_unit("branch1x1", 64)],
        [_unit("branch5x5_1", 48), _unit("branch5x5_2", 64, 5, 5)],
        [
            _unit("branch3x3dbl_1", 64),
            _unit("branch3x3dbl_2", 96, 3, 3),
            _unit("branch3x3dbl_3", 96, 3, 3),
        ],
    ]
    return Mixed(before, chains, {}, "average", pool_width)


def _mixed_6a(before: int) -> Mixed:
    chains = [
        [_unit("branch3x3", 384, 3, 3, stride=2)],
        [
            _unit("branch3x3dbl_1", 64),
            _unit("branch3x3dbl_2", 96, 3, 3),
            _unit("branch3x3dbl_3", 96, 3, 3, stride=2),
        ],
    ]
    return Mixed(before, chains, {}, "halve")


def _mixed_6(before: int, inner: int) -> Mixed:
    chains = [
        [_unit("branch1x1", 192)],
        [
            _unit("branch7x7_1", inner),
            _unit("branch7x7_2", inner, 1, 7),
            _unit("branch7x7_3", 192, 7, 1),
        ],
        [
            _unit("branch7x7dbl_1", inner),
            _unit("branch7x7dbl_2", inner, 7, 1),
            _unit("branch7x7dbl_3", inner, 1, 7),
            _unit("branch7x7dbl_4", inner, 7, 1),
            _unit("branch7x7dbl_5", 192, 1, 7),
        ],
    ]
    return Mixed(before, chains, {}, "average", 192)


def _mixed_7a(before: int) -> Mixed:
    chains = [
        [_unit("branch3x3_1", 192), _unit("branch3x3_2", 320, 3, 3, stride=2)],
        [
            _unit("branch7x7x3_1", 192),
            _unit("branch7x7x3_2", 192, 1, 7),
            _unit("branch7x7x3_3", 192, 7, 1),
            _unit("branch7x7x3_4", 192, 3, 3, stride=2),
        ],
    ]
    return Mixed(before, chains, {}, "halve")


def _mixed_7(before: int, pool: Pool) -> Mixed:
    chains = [
        [_unit("branch1x1", 320)],
        [_unit("branch3x3_1", 384)],
        [_unit("branch3x3dbl_1", 448), _unit("branch3x3dbl_2", 384, 3, 3)],
    ]
    forks = {
        1: (_unit("branch3x3_2a", 384, 1, 3), _unit("branch3x3_2b", 384, 3, 1)),
        2: (_unit("branch3x3dbl_3a", 384, 1, 3), _unit("branch3x3dbl_3b", 384, 3, 1)),
    }
    return Mixed(before, chains, forks, pool, 192)


class FidInception(nn.Module):
    """Images to the 2048 pooled features of the FID; always in fp32.

    Attributes:
        classifier: weights [1008, 2048] of the last layer, for the Inception Score; None if the
            weight file has none.
    """

    classifier: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, _unit("", 32, 3, 3, stride=2))
        self.Conv2d_2a_3x3 = ConvUnit(32, Unit("", 32, (3, 3), 1, (0, 0)))
        self.Conv2d_2b_3x3 = ConvUnit(32, _unit("", 64, 3, 3))
        self.Conv2d_3b_1x1 = ConvUnit(64, _unit("", 80))
        self.Conv2d_4a_3x3 = ConvUnit(80, Unit("", 192, (3, 3), 1, (0, 0)))
        self.Mixed_5b = _mixed_5(192, 32)
        self.Mixed_5c = _mixed_5(256, 64)
        self.Mixed_5d = _mixed_5(288, 64)
        self.Mixed_6a = _mixed_6a(288)
        self.Mixed_6b = _mixed_6(768, 128)
        self.Mixed_6c = _mixed_6(768, 160)
        self.Mixed_6d = _mixed_6(768, 160)
        self.Mixed_6e = _mixed_6(768, 192)
        self.Mixed_7a = _mixed_7a(768)
        self.Mixed_7b = _mixed_7(1280, "average")
        self.Mixed_7c = _mixed_7(2048, "maximum")
        self.register_buffer("classifier", None)

    def features(self, images: Tensor) -> InceptionFeatures:
        """Everything the measures use, of images float [B, 3 or 1, H, W] in [-1, 1]."""
        branch = self.Mixed_6d.get_submodule("branch1x1")
        kept: list[Tensor] = []
        handle = branch.register_forward_hook(
            lambda _module, _inputs, output: kept.append(output[:, :_SPATIAL_CHANNELS])
        )
        try:
            pooled = self(images)
        finally:
            handle.remove()
        shares = None
        if self.classifier is not None:
            with torch.autocast(images.device.type, enabled=False):
                # Without the bias, as ADM's evaluator; one matrix product per image either way.
                shares = (pooled @ self.classifier.t()).softmax(1)
        return InceptionFeatures(pooled, kept[0].flatten(1), shares)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3 or 1, H, W] in [-1, 1], any size -> fp32 [B, 2048]."""
        return self.stages(images)[-1].mean(dim=(2, 3))

    def stages(self, images: Tensor) -> list[Tensor]:
        """Maps of 64, 192, 768 and 2048 channels, where the published port divides it."""
        with torch.autocast(images.device.type, enabled=False):
            x = as_rgb(images).float()
            x = F.interpolate(x, (_SIDE, _SIDE), mode="bilinear", align_corners=False)
            x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
            first = F.max_pool2d(x, 3, stride=2)
            x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(first))
            second = F.max_pool2d(x, 3, stride=2)
            x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(second))))
            third = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
            return [first, second, third, self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(third)))]


def load_fid_inception(path: Path) -> FidInception:
    """The network with weights from a local .pth or .safetensors file, frozen, in eval mode.

    Raises:
        ValueError: not such a file; names tensors that are missing, left over or misshapen.
    """
    counters = "num_batches_tracked"
    tensors = read_tensors(path)
    weights = {
        name: value
        for name, value in tensors.items()
        if not name.startswith(("fc.", "AuxLogits.")) and not name.endswith(counters)
    }
    network = FidInception()
    try:
        missing, unexpected = network.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
    missing = [name for name in missing if not name.endswith(counters)]
    if missing or unexpected:
        raise ValueError(
            f"{path}: not FID-Inception weights; missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
    classifier = tensors.get("fc.weight")
    if classifier is not None and classifier.shape == (NUM_CLASSES, NUM_FEATURES):
        network.classifier = classifier.float()
    return network.eval().requires_grad_(False)
