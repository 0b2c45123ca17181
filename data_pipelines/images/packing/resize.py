"""Smaller copies of large images while packing: less to store, to read and to decode."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import UserError

DEFAULT_QUALITY = 95


@dataclass(frozen=True)
class ResizeSpec:
    """What becomes of images whose short side is longer than `short_side` pixels.

    They are resized to it (bicubic with antialiasing, integer arithmetic, aspect kept) and stored
    as JPEG of `quality` (1 to 100) without chroma subsampling. Alpha is dropped, EXIF and colour
    profiles too. All others keep their bytes.
    """

    short_side: int
    quality: int = DEFAULT_QUALITY

    def __post_init__(self) -> None:
        if self.short_side < 1:
            raise UserError(f"resize short side {self.short_side} is not allowed; use 1 or more")
        if not 1 <= self.quality <= 100:
            raise UserError(f"JPEG quality {self.quality} is not allowed; use 1 to 100")


def shrink(pixels: NDArray[np.uint8], spec: ResizeSpec) -> bytes | None:
    """A smaller JPEG of an image, uint8 [H, W, 3]; None if it is small enough already."""
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= spec.short_side:
        return None
    new_width, new_height = (round(side * spec.short_side / short) for side in (width, height))
    small = Image.fromarray(pixels).resize((new_width, new_height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=spec.quality, subsampling=0, optimize=True)
    return buffer.getvalue()
