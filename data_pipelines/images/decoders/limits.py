"""How much an image may ask of the machine that decodes it.

A reader at 256 pixels stays below 200 MB whatever it is given: sides, pixels, scans and the
decoder's own memory are bounded, all from the header, before any memory is taken.
"""

from data_pipelines.images.decoders.jpeg_header import JpegHeader, count_scans

MAX_PIXELS = 1 << 26
"""Default limit of height times width, 67 million."""
MAX_ASPECT = 32
"""Longer side over shorter side. A longer image says next to nothing at a square crop."""
MAX_SCANS = 100
"""Of a JPEG; progressive ones have about ten."""
MAX_SCANNED_PIXELS = 1 << 30
"""Pixels times scans: a few seconds of decoding."""
MAX_DECODER_BYTES = 160 << 20
"""What a decoder may hold of an image that it cannot decode in parts or at a smaller size."""
LARGE_PIXELS = 1 << 22
"""Larger images are decoded in parts where the format allows it, or only as far as needed."""

_BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
MAX_WEBP_PIXELS = 12_200_000
"""16 bytes each: two canvases, the frame as bytes, and the image."""


class BadImage(ValueError):
    """These bytes are not a usable image; the message is the reason, without a name."""


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Raises BadImage for too many pixels, none, or too long a side."""
    if height * width > max_pixels:
        raise BadImage(f"{width}x{height} pixels exceed the limit of {max_pixels} pixels")
    if height < 1 or width < 1:
        raise BadImage(f"{width}x{height} pixels are none")
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise BadImage(
            f"{width}x{height} pixels: one side is more than {MAX_ASPECT} times the other"
        )


def check_jpeg(header: JpegHeader) -> None:
    """Raises BadImage where a file of several scans, or one Pillow decodes, needs too much, and
    for samples of more than 8 bits, which no decoder here takes."""
    if header.bits != 8:
        raise BadImage(f"a JPEG of {header.bits} bits; store it with 8, or as PNG")
    num_bytes = header.coefficient_bytes
    if not header.is_common:
        num_bytes += 4 * header.height * header.width
    _check_bytes(num_bytes, header.height * header.width, "this kind of JPEG")


def check_other(image_format: str, mode: str, num_pixels: int) -> None:
    """Raises BadImage where Pillow's form of a PNG or WebP would take too much memory."""
    if image_format == "WEBP" and num_pixels > MAX_WEBP_PIXELS:
        raise BadImage(
            f"{num_pixels} pixels of WebP exceed its limit of {MAX_WEBP_PIXELS};"
            " store it smaller, or as a baseline JPEG"
        )
    _check_bytes(num_pixels * _BYTES_PER_PIXEL.get(mode, 4), num_pixels, f"{image_format} ({mode})")


def check_scans(data: bytes | memoryview, num_pixels: int) -> None:
    """Raises BadImage for more scans than any encoder makes."""
    scans = count_scans(data)
    if scans > MAX_SCANS or scans * num_pixels > MAX_SCANNED_PIXELS:
        raise BadImage(f"{scans} scans of {num_pixels} pixels would take too long to decode")


def _check_bytes(num_bytes: int, num_pixels: int, what: str) -> None:
    if num_bytes > MAX_DECODER_BYTES:
        raise BadImage(
            f"{num_pixels} pixels of {what} take {num_bytes >> 20} MB to decode, allowed are"
            f" {MAX_DECODER_BYTES >> 20}; store it smaller, or as a baseline JPEG"
        )
