"""What the header of a JPEG says: size, components, sampling, and how many scans follow.

libjpeg decodes every scan of a file completely, so a few kilobytes with thousands of scans keep it
busy for minutes, and a file of several scans is held as coefficients, two bytes each.
"""

from dataclasses import dataclass
from struct import unpack_from

_START_OF_SCAN = 0xDA
_SCAN_MARKER = b"\xff\xda"
_NO_LENGTH = frozenset((0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
_COMMON_SAMPLING = frozenset(((1, 1), (2, 1), (2, 2), (1, 2), (4, 1)))
_BYTES_PER_COEFFICIENT = 2


@dataclass(frozen=True)
class JpegHeader:
    """Facts before the first scan.

    Attributes:
        height, width: in pixels, as stored.
        sampling: (horizontal, vertical) factor of each component.
        several_scans: progressive, or components one after the other.
        bits: of a sample.
    """

    height: int
    width: int
    sampling: tuple[tuple[int, int], ...]
    several_scans: bool
    bits: int = 8

    @property
    def is_common(self) -> bool:
        """Grey, or three components of which only the first may be sampled more finely."""
        if len(self.sampling) == 1:
            return True
        return (
            len(self.sampling) == 3
            and self.sampling[0] in _COMMON_SAMPLING
            and self.sampling[1] == self.sampling[2] == (1, 1)
        )

    @property
    def coefficient_bytes(self) -> int:
        """What the decoder holds of a file of several scans; 0 for others."""
        if not self.several_scans:
            return 0
        across = max(h for h, _ in self.sampling)
        down = max(v for _, v in self.sampling)
        shares = sum(h * v for h, v in self.sampling) / (across * down)
        return round(self.height * self.width * shares * _BYTES_PER_COEFFICIENT)


def read_jpeg_header(data: bytes | memoryview) -> JpegHeader | None:
    """The header up to the first scan; None where segments do not follow each other as they
    should, which decoders may still forgive."""
    frame, at, end = None, 2, len(data) - 4
    while at < end:
        if data[at] != 0xFF:
            return None
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in _NO_LENGTH:
            at += 2
            continue
        (length,) = unpack_from(">H", data, at + 2)
        if length < 2:
            return None
        if marker == _START_OF_SCAN:
            return _header(data, frame, data[at + 4])
        if marker in _FRAMES:
            frame = at
        at += 2 + length
    return None


def count_scans(data: bytes | memoryview) -> int:
    """Scans, those of a thumbnail included; coded data never holds the marker."""
    return bytes(data).count(_SCAN_MARKER)


def _header(
    data: bytes | memoryview, frame: int | None, first_scan_components: int
) -> JpegHeader | None:
    """From the place of the frame's marker."""
    if frame is None or frame + 10 > len(data):
        return None
    height, width, count = unpack_from(">HHB", data, frame + 5)
    if not 1 <= count <= 4 or frame + 10 + 3 * count > len(data):
        return None
    factors = [data[frame + 11 + 3 * i] for i in range(count)]
    sampling = tuple((factor >> 4, factor & 15) for factor in factors)
    if not all(1 <= h <= 4 and 1 <= v <= 4 for h, v in sampling):
        return None
    several = data[frame + 1] in _PROGRESSIVE or first_scan_components < count
    return JpegHeader(height, width, sampling, several, data[frame + 4])
