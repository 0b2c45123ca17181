"""Encoded samples and a geometry to pixels, behind one interface.

Backends agree on the geometry exactly and on pixels within a fraction of a grey level on average
(different resize implementations); each is bit-stable for itself, whatever batch a sample is in.
Whoever stores something made from pixels records `ImageDecoder.name`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import torch

from data_pipelines.memory import RecycledTensors
from data_pipelines.views import ViewGeometry

DecoderKind = Literal["auto", "cpu", "dali"]
Encoded: TypeAlias = bytes | memoryview
_UNIT_RANGE = RecycledTensors()


@dataclass(frozen=True)
class DecodedBatch:
    """`images`: uint8 [B, 3, h, w] RGB; zeros where decoding failed.

    `failures`: (position in the batch, reason), in order of position.
    """

    images: torch.Tensor
    failures: list[tuple[int, str]]


class ImageDecoder(Protocol):
    """A decoding backend. `name` identifies what made the pixels, such as "cpu" or "dali-mixed"."""

    name: str
    device: torch.device
    """Where the images come out."""

    def decode(self, encoded: Sequence[Encoded], geometry: ViewGeometry) -> DecodedBatch:
        """Decode, crop, resize and mirror B images; a bad one never fails the others.

        Args:
            encoded: the images' bytes.
            geometry: of as many views, made with the indexed sizes; an image of another size
                than indexed is bad.
        """
        ...

    def close(self) -> None: ...


def to_unit_range(images: torch.Tensor) -> torch.Tensor:
    """uint8 [B, ...] in [0, 255] to float32 in [-1, 1]: x / 127.5 - 1, on the same device."""
    if images.device.type != "cpu" or images.dim() < 2:
        return images.to(torch.float32).div_(127.5).sub_(1.0)
    converted = _UNIT_RANGE.empty(tuple(images.shape), torch.float32)
    # One image after the other stays in the cache between the two steps.
    for image, target in zip(images, converted, strict=True):
        torch.div(image, 127.5, out=target).sub_(1.0)
    return converted
