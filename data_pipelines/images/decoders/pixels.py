"""Encoded images to RGB pixels on the CPU, and what counts as a usable image.

Decisions, the same when a dataset is packed and when it is read:

=====================  ==========================================================================
input                  what happens
=====================  ==========================================================================
colour, grey JPEG      decoded to RGB by libjpeg-turbo; progressive ones too
unusual sampling       through Pillow, which decodes all that libjpeg can
CMYK, YCCK JPEG        through Pillow, naive conversion to RGB, as the released code does
PNG, WebP              through Pillow, `convert("RGB")`: alpha is dropped, palettes are applied,
                       grey and 1-bit are repeated over the channels
16-bit grey PNG        scaled to 8 bits (Pillow's own conversion would clip nearly all to white)
12-bit JPEG            refused by this name; so are floating-point and 32-bit TIFFs when packing
arithmetic coding      decoded where the libraries can; lossless JPEG as well
EXIF orientation       ignored, as the released code does: boxes are in stored pixels
animated WebP          first frame
format                 by content, never by name (ImageNet has PNGs named .JPEG)
truncated image        refused, however little is missing
empty, junk, others    refused; packing converts what Pillow reads (see packing/convert.py)
too large or too long  refused before any memory is taken for pixels, see decoders/limits.py
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

from data_pipelines.images.decoders.jpeg_header import JpegHeader, read_jpeg_header
from data_pipelines.images.decoders.limits import (
    LARGE_PIXELS,
    MAX_PIXELS,
    BadImage,
    check_jpeg,
    check_other,
    check_scans,
    check_size,
)
from data_pipelines.images.decoders.strips import Window, rgb_of_window
from data_pipelines.images.impostors import name_impostor
from data_pipelines.memory import Scratch

ALLOWED_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "jfif", "jpe", "jif", "pjpeg", "pjp")
"""Of images that are stored and read as they are."""

PILLOW_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's PNG reader raises it for broken chunks
    EOFError,
    struct.error,
    zlib.error,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    Image.DecompressionBombError,
)
"""What its readers raise for damaged bytes."""


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
    raise BadImage(f"not a JPEG, PNG or WebP image{name_impostor(bytes(data[:512]))}")


def read_facts(data: bytes | memoryview, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Size and format from the header alone. Raises BadImage."""
    image_format = sniff_format(data)
    if image_format == "jpeg":
        header = _jpeg_header(data, max_pixels)
        return ImageFacts(header.height, header.width, image_format)
    width, height = _open_pillow(data, max_pixels).size
    return ImageFacts(height, width, image_format)


def decode_rgb(
    data: bytes | memoryview, max_pixels: int = MAX_PIXELS, scratch: Scratch | None = None
) -> NDArray[np.uint8]:
    """All pixels, uint8 [H, W, 3]; of `scratch`, if it is given, or new.

    Raises:
        BadImage: see the table above.
    """
    if sniff_format(data) == "jpeg":
        header = _jpeg_header(data, max_pixels)
        if header.is_common:
            try:
                num_bytes = header.height * header.width * 3
                memory = scratch.take(num_bytes) if scratch else None
                return simplejpeg.decode_jpeg(data, "RGB", buffer=memory)
            except ValueError:
                # Raised for harmless warnings too (stray bytes before a marker); Pillow tells
                # those from truncated images.
                pass
    return _decode_pillow(data, max_pixels)


def decode_jpeg_scaled(
    data: bytes | memoryview,
    denominator: int,
    scratch: Scratch | None = None,
    max_pixels: int = MAX_PIXELS,
) -> NDArray[np.uint8] | None:
    """A colour JPEG at 1/denominator (2, 4, 8) of its size, rounded up; None if it is another kind.

    One pixel stands for denominator x denominator source pixels exactly, also where the last row
    or column covers less. The pixels are of `scratch`, if it is given, or new.
    """
    header = _jpeg_header(data, max_pixels)
    if not header.is_common:
        return None
    wanted = (-(-header.height // denominator), -(-header.width // denominator))
    memory = scratch.take(wanted[0] * wanted[1] * 3) if scratch else None
    try:
        pixels = simplejpeg.decode_jpeg(
            data, "RGB", min_height=wanted[0], min_width=wanted[1], min_factor=denominator,
            buffer=memory,
        )  # fmt: skip
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == wanted else None


def decode_window(
    data: bytes | memoryview, window: Window, factor: int, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """A window at 1/factor of its size (averages of squares, rounded up), uint8 [h, w, 3].

    Beside the result, the memory taken is that of Pillow's own form of the image.
    """
    image = _open_pillow(data, max_pixels)
    try:
        return rgb_of_window(image, window, factor)
    except PILLOW_ERRORS as error:
        raise BadImage(reason_of(error)) from None


def is_large(data: bytes | memoryview, height: int, width: int) -> bool:
    """Whether decoding all of it would take more memory than a part of it needs."""
    if height * width <= LARGE_PIXELS:
        return False
    if sniff_format(data) != "jpeg":
        return True
    header = read_jpeg_header(data)
    return header is None or not header.is_common


def validate_image(data: bytes, max_pixels: int = MAX_PIXELS) -> ImageFacts:
    """Decode everything; facts of the image if that works. Raises BadImage."""
    facts = read_facts(data, max_pixels)
    if facts.height * facts.width > LARGE_PIXELS:
        # All of the bytes are decoded, most of the pixels are never made.
        if facts.format != "jpeg":
            decode_window(data, (0, 0, facts.width, facts.height), 8, max_pixels)
            return facts
        if decode_jpeg_scaled(data, 8, max_pixels=max_pixels) is not None:
            return facts
    height, width, _ = decode_rgb(data, max_pixels).shape
    return ImageFacts(height, width, facts.format)


def _jpeg_header(data: bytes | memoryview, max_pixels: int) -> JpegHeader:
    header = read_jpeg_header(data)
    if header is None:
        header = _forgiving_header(data)
    check_size(header.height, header.width, max_pixels)
    check_jpeg(header)
    if header.several_scans:
        check_scans(data, header.height * header.width)
    return header


def _forgiving_header(data: bytes | memoryview) -> JpegHeader:
    """As libjpeg reads it where segments are not one behind the other; never a common one."""
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data, strict=False)
        return JpegHeader(int(height), int(width), ((1, 1),) * 4, several_scans=True)
    except KeyError:
        pass  # simplejpeg looks up a colour space or subsampling that it does not know
    except ValueError as error:
        raise BadImage(f"damaged JPEG header ({error})") from None
    try:
        image = _identify(data)
    except BadImage as error:
        raise BadImage(f"damaged JPEG header ({error})") from None
    return JpegHeader(image.height, image.width, ((1, 1),) * 4, several_scans=True)


def _identify(data: bytes | memoryview) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
    except PILLOW_ERRORS as error:
        raise BadImage(reason_of(error)) from None


def _open_pillow(data: bytes | memoryview, max_pixels: int) -> Image.Image:
    image = _identify(data)
    check_size(image.height, image.width, max_pixels)
    check_other(image.format or "", image.mode, image.height * image.width)
    return image


def _decode_pillow(data: bytes | memoryview, max_pixels: int) -> NDArray[np.uint8]:
    image = _open_pillow(data, max_pixels)
    try:
        return rgb_of_window(image, (0, 0, image.width, image.height), 1)
    except PILLOW_ERRORS as error:
        raise BadImage(reason_of(error)) from None


def reason_of(error: BaseException) -> str:
    """One line that is the same whenever the same bytes are tried."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    # Pillow puts the address of a buffer into some messages; a reason must be reproducible.
    return "cannot identify image" if text.startswith("cannot identify") else text
