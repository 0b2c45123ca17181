"""Images as people hold them, to and from batches of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.base import to_unit_range
from ifsq_train.artifacts.trained import to_uint8
from ifsq_train.models.channels import as_rgb

Pictures: TypeAlias = (
    "Image.Image | np.ndarray | Tensor | Sequence[Image.Image | np.ndarray | Tensor]"
)
OutputType = Literal["pil", "np", "pt"]

_ALLOWED = (
    "give PIL images, uint8 arrays [H, W, 3] or [B, H, W, 3], or float tensors [3, H, W] or"
    " [B, 3, H, W] with values in [-1, 1]; grey ones have 1 in place of 3"
)
_LARGEST = 2.0
"""Reconstructions go a little beyond [-1, 1]; values beyond this are of another scale."""


def to_batch(images: Pictures) -> tuple[Tensor, bool]:
    """A batch float32 [B, 3, H, W] in [-1, 1] on its device, and whether it was a single image.

    Grey is repeated.

    Raises:
        UserError: nothing, another kind or shape, another range, or images of different sizes.
    """
    if isinstance(images, Image.Image | np.ndarray | Tensor):
        one = _to_tensor(images)
        return (as_rgb(one[None]), True) if one.dim() == 3 else (as_rgb(one), False)
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise UserError(f"images: found {_kind(images)}; {_ALLOWED}")
    if not images:
        raise UserError("images: found none; give at least one")
    each = [_to_tensor(image) for image in images]
    if wrong := [tuple(one.shape) for one in each if one.dim() != 3]:
        raise UserError(f"images: found {wrong[0]} in a list; a list holds single images")
    sizes = sorted({f"{one.shape[1]} x {one.shape[2]}" for one in each})
    if len(sizes) > 1:
        raise UserError(
            f"images: found sizes {', '.join(sizes)} (height x width) in one call; resize them to"
            " one size, or call once for each"
        )
    return torch.cat([as_rgb(one[None]) for one in each]), False


def from_batch(images: Tensor, output_type: OutputType, single: bool) -> Any:
    """Images float [B, 3 or 1, H, W], nominally in [-1, 1], as asked for.

    Args:
        images: of a decoder.
        output_type: ``pil``: a list of PIL images; ``np``: uint8 [B, H, W, C]; ``pt``: as it is.
        single: give the first alone.

    Raises:
        UserError: an unknown `output_type`.
    """
    check_output_type(output_type)
    if output_type == "pt":
        return images[0] if single else images
    pixels = to_uint8(images.float()).permute(0, 2, 3, 1).cpu().numpy()
    if output_type == "np":
        return pixels[0] if single else pixels
    made = [Image.fromarray(one[..., 0] if one.shape[-1] == 1 else one) for one in pixels]
    return made[0] if single else made


def check_output_type(output_type: str) -> None:
    """Refuse what `from_batch` does not know.

    Raises:
        UserError: an unknown one.
    """
    if output_type not in ("pil", "np", "pt"):
        raise UserError(f"output_type: found '{output_type}'; use pil, np or pt")


def check_sides(images: Tensor, ratio: int) -> None:
    """Refuse images [B, 3, H, W] whose sides are not whole numbers of `ratio` pixels.

    Raises:
        UserError: says the nearest sizes that fit.
    """
    height, width = images.shape[2:]
    if height % ratio or width % ratio or not height or not width:
        fitting = " x ".join(str(max(1, round(side / ratio)) * ratio) for side in (height, width))
        raise UserError(
            f"images: found {height} x {width} pixels (height x width); both must be multiples of"
            f" this tokenizer's {ratio} pixels per token: resize or crop, for example to {fitting}"
        )


def _to_tensor(image: Any) -> Tensor:
    """Float32 [3 or 1, H, W] or [B, 3 or 1, H, W] of one PIL image, array or tensor."""
    if isinstance(image, Image.Image):
        return _of_pixels(np.array(image.convert("RGB")))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] not in (1, 3):
            raise UserError(f"images: found {_kind(image)}; {_ALLOWED}")
        return _of_pixels(image)
    if not isinstance(image, Tensor) or not image.is_floating_point():
        raise UserError(f"images: found {_kind(image)}; {_ALLOWED}")
    if image.dim() not in (3, 4) or image.shape[-3] not in (1, 3):
        raise UserError(f"images: found {_kind(image)}; {_ALLOWED}")
    if not image.numel():
        raise UserError(f"images: found an empty tensor {list(image.shape)}; {_ALLOWED}")
    largest = float(image.detach().abs().max())
    if not largest <= _LARGEST:
        raise UserError(f"images: found values up to {largest:g}; a tensor's are in [-1, 1]")
    return image.float()


def _of_pixels(pixels: np.ndarray) -> Tensor:
    if not pixels.size:
        raise UserError(f"images: found an empty array {list(pixels.shape)}; {_ALLOWED}")
    channels_first = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, -3)))
    return to_unit_range(channels_first)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray | Tensor):
        name = "an array" if isinstance(value, np.ndarray) else "a tensor"
        return f"{name} {value.dtype} {list(value.shape)}"
    return f"a {type(value).__name__}"
