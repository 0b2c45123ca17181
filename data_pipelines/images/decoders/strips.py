"""Pillow images to RGB a strip at a time: a second whole copy of a large one is never made."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Window: TypeAlias = tuple[int, int, int, int]
"""x0, y0, x1, y1 in source pixels."""

_STRIP_PIXELS = 1 << 20
_LARGEST_GREY = 65535
_SIXTEEN_BITS_IN_32 = frozenset(("PNG", "PPM", "JPEG2000"))
"""Formats of at most 16 bits that Pillow gives in 32."""


def rgb_of_window(image: Image.Image, window: Window, factor: int) -> NDArray[np.uint8]:
    """Part of an image as uint8 [h, w, 3], at 1/factor of its size, rounded up.

    Raises:
        ValueError, OSError and others of Pillow's: the image is damaged.
    """
    image.load()
    if image.mode == "F" or (image.mode == "I" and image.format not in _SIXTEEN_BITS_IN_32):
        kind = "floating-point" if image.mode == "F" else "32-bit"
        raise ValueError(f"pixels are {kind} numbers, whose range is unknown")
    x0, y0, x1, y1 = window
    size = (-(-(y1 - y0) // factor), -(-(x1 - x0) // factor))
    whole = (x1 - x0) * (y1 - y0) <= _STRIP_PIXELS and factor == 1
    if whole and window == (0, 0, *image.size):
        return np.array(_rgb(image))
    pixels = np.empty((*size, 3), np.uint8)
    for top, strip in _strips(image, window, factor):
        part = np.asarray(strip.reduce(factor) if factor > 1 else strip)
        pixels[top : top + len(part)] = part
    return pixels


def _strips(image: Image.Image, window: Window, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """RGB strips of whole multiples of `factor` rows, with the first row of each result."""
    x0, y0, x1, y1 = window
    rows = max(1, _STRIP_PIXELS // max(1, x1 - x0) // factor) * factor
    for top in range(y0, y1, rows):
        part = image.crop((x0, top, x1, min(top + rows, y1)))
        part.info = image.info  # of a palette: which colour is transparent
        yield (top - y0) // factor, _rgb(part)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        wide = np.clip(np.asarray(image).astype(np.int64), 0, _LARGEST_GREY)
        grey = ((wide * 255 + _LARGEST_GREY // 2) // _LARGEST_GREY).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return image.convert("RGB")
