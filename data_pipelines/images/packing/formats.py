"""Image files by extension, and other formats than JPEG, PNG and WebP converted while packing."""

import io
from collections.abc import Callable

from PIL import Image

from data_pipelines.images.decoders.limits import BadImage, check_other, check_size
from data_pipelines.images.decoders.pixels import (
    ALLOWED_EXTENSIONS,
    PILLOW_ERRORS,
    reason_of,
    sniff_format,
)
from data_pipelines.images.decoders.strips import rgb_of_window
from data_pipelines.images.impostors import name_impostor

CONVERTED_EXTENSIONS = (
    "bmp", "dib", "gif", "tif", "tiff", "jp2", "j2k", "jpf", "jpx", "jpc", "j2c", "avif", "avifs",
    "heic", "heif", "hif", "ppm", "pgm", "pbm", "pnm", "tga", "pcx", "qoi", "apng", "mpo",
)  # fmt: skip
"""Read by Pillow or its plug-in, stored as PNG."""
UNREADABLE_EXTENSIONS = (
    "jxl", "jxr", "svg", "psd", "exr", "hdr", "dng", "cr2", "cr3", "nef", "arw", "raf", "orf",
    "rw2",
)  # fmt: skip
"""Images all the same: one that cannot be read is an image lost."""
IMAGE_EXTENSIONS = frozenset(ALLOWED_EXTENSIONS + CONVERTED_EXTENSIONS + UNREADABLE_EXTENSIONS)

_FORMATS = (
    "BMP", "DIB", "GIF", "TIFF", "JPEG2000", "AVIF", "HEIF", "PPM", "TGA", "PCX", "QOI",
)  # fmt: skip
_PNG_LEVEL = 6


def storable(data: bytes, max_pixels: int) -> bytes:
    """The bytes themselves if a dataset can hold them, else the same picture as PNG.

    The first frame; alpha and orientation are treated as those of other images.

    Raises:
        BadImage: nothing that Pillow reads, or too large.
    """
    try:
        sniff_format(data)
        return data
    except BadImage as error:
        unknown = error
    if not data:
        raise unknown
    _register_heif()
    try:
        image = Image.open(io.BytesIO(data), formats=_readable())
    except PILLOW_ERRORS:
        raise BadImage(f"{unknown}{_hint(data)}") from None
    check_size(image.height, image.width, max_pixels)
    check_other(image.format or "", image.mode, image.height * image.width)
    try:
        pixels = rgb_of_window(image, (0, 0, image.width, image.height), 1)
    except PILLOW_ERRORS as error:
        raise BadImage(reason_of(error)) from None
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def _readable() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _register_heif() -> None:
    """Pillow reads HEIF with the package pillow-heif."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        return
    register: Callable[[], None] = pillow_heif.register_heif_opener
    register()


def _hint(data: bytes) -> str:
    found = name_impostor(data[:512])
    if "HEIF" in found and "HEIF" not in Image.OPEN:
        return "; to read it: pip install pillow-heif"
    return ""
