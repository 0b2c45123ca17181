"""Encoded images to RGB pixels on the CPU, and what counts as a usable image.

Decisions, the same when a dataset is packed and when it is read:

=====================  ==========================================================================
input                  what happens
=====================  ==========================================================================
colour, grey JPEG      decoded to RGB by libjpeg-turbo; progressive ones too
CMYK, YCCK JPEG        through Pillow, naive conversion to RGB, as the released code does
PNG, WebP              through Pillow, `convert("RGB")`: alpha is dropped, palettes are applied,
                       grey and 1-bit are repeated over the channels
16-bit grey PNG        scaled to 8 bits (Pillow's own conversion would clip nearly all to white)
EXIF orientation       ignored, as the released code does: boxes are in stored pixels
animated WebP          first frame
format                 by content, never by name (ImageNet has PNGs named .JPEG)
truncated image        refused, however little is missing
empty, junk, others    refused (GIF, BMP, TIFF, AVIF: convert them first)
more than `max_pixels` refused before any memory is taken for pixels
damaged pixels         a flipped bit inside the entropy-coded data usually decodes to wrong pixels
                       without an error in every decoder; only the stored crc32 and sha256 see it
=====================  ==========================================================================
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.memory import Scratch

MAX_PIXELS = 1 << 26
"""Default limit of height times width, 67 million: 201 MB of RGB."""

ALLOWED_EXTENSIONS = ("jpg", "jpeg", "png", "webp")

_PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's PNG reader raises it for broken chunks
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class BadImage(ValueError):
    """These bytes are not a usable image; the message is the reason, without a name."""


@dataclass(frozen=True)
class ImageFacts:
    """What an index records of an image; sizes in pixels as stored (EXIF ignored)."""

    height: int
    width: int
    format: str


def sniff_format(data: bytes | memoryview) -> str:
    """jpeg, png or webp by the first bytes. Raises BadImage for anything else."""
    head = bytes(data[:12])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    if not head:
        raise BadImage("empty file")
    raise BadImage("not a JPEG, PNG or WebP image")


def read_facts(data: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Size and format from the header alone. Raises BadImage."""
    image_format = sniff_format(data)
    if image_format == "jpeg":
        height, width, _ = _jpeg_header(data)
    else:
        height, width = _open_pillow(data, max_pixels).size[::-1]
    _check_pixels(height, width, max_pixels)
    return ImageFacts(height, width, image_format)


def decode_rgb(
    data: bytes | memoryview, max_pixels: int = MAX_PIXELS, scratch: Scratch | None = None
) -> NDArray[np.uint8]:
    """All pixels, uint8 [H, W, 3]; of `scratch`, if it is given, or new.

    Raises:
        BadImage: see the table above.
    """
    if sniff_format(data) == "jpeg":
        height, width, colorspace = _jpeg_header(data)
        _check_pixels(height, width, max_pixels)
        if colorspace not in ("CMYK", "YCCK"):
            try:
                memory = scratch.take(height * width * 3) if scratch else None
                return simplejpeg.decode_jpeg(data, "RGB", buffer=memory)
            except ValueError:
                # Raised for harmless warnings too (stray bytes before a marker); Pillow tells
                # those from truncated images.
                pass
    return _decode_pillow(data, max_pixels)


def decode_jpeg_scaled(
    data: bytes | memoryview, denominator: int, scratch: Scratch | None = None
) -> NDArray[np.uint8] | None:
    """A colour JPEG at 1/denominator (2, 4, 8) of its size, rounded up; None if it is another kind.

    One pixel stands for denominator x denominator source pixels exactly, also where the last row
    or column covers less. The pixels are of `scratch`, if it is given, or new.
    """
    height, width, colorspace = _jpeg_header(data)
    if colorspace in ("CMYK", "YCCK"):
        return None
    wanted = (-(-height // denominator), -(-width // denominator))
    memory = scratch.take(wanted[0] * wanted[1] * 3) if scratch else None
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=wanted[0], min_width=wanted[1], min_factor=denominator,
            buffer=memory,
        )  # fmt: skip
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == wanted else None


def validate_image(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode everything; facts of the image if that works. Raises BadImage."""
    height, width, _ = decode_rgb(data, max_pixels).shape
    return ImageFacts(height, width, sniff_format(data))


def _jpeg_header(data: bytes | memoryview) -> tuple[int, int, str]:
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:
        # KeyError: simplejpeg looks up a colour space or subsampling that does not exist.
        raise BadImage(f"damaged JPEG header ({error})") from None
    return int(height), int(width), str(colorspace)


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise BadImage(f"{width}x{height} pixels exceed the limit of {max_pixels} pixels")


def _open_pillow(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except _PILLOW_ERRORS as error:
        raise BadImage(_reason(error)) from None
    _check_pixels(image.height, image.width, max_pixels)
    return image


def _decode_pillow(data: bytes | memoryview, max_pixels: int) -> NDArray[np.uint8]:
    image = _open_pillow(data, max_pixels)
    try:
        image.load()
        if image.mode.startswith("I"):
            grey = (np.asarray(image).astype(np.int64) * 255 + 32767) // 65535
            return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))
    except _PILLOW_ERRORS as error:
        raise BadImage(_reason(error)) from None


def _reason(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Pillow puts the address of a buffer into some messages; a reason must be reproducible.
    return "cannot identify image" if text.startswith("cannot identify") else text
