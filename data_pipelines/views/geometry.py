"""Where a crop lies: sizes and positions of views as arrays of integers, drawn from hashes."""

from dataclasses import dataclass, fields, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_pipelines.hashing import U64Array, coin, hash_u64, uniform_int

IntArray: TypeAlias = NDArray[np.int64]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]
Size: TypeAlias = tuple[int, int]
"""Height and width."""

_DRAW_SHORT_SIDE, _DRAW_TOP, _DRAW_LEFT, _DRAW_FLIP = 11, 12, 13, 14


@dataclass(frozen=True)
class ViewGeometry:
    """Geometry of B views. All arrays are [B] unless said otherwise; sizes in pixels.

    `size`: height and width of what comes out.
    """

    size: Size
    interpolation: Interpolation
    source_heights: IntArray
    source_widths: IntArray
    resized_heights: IntArray
    resized_widths: IntArray
    tops: IntArray
    lefts: IntArray
    flips: NDArray[np.bool_]
    box_halving: bool = False
    """Images at least twice as large as they are resized to are halved by averages first."""

    def __len__(self) -> int:
        return len(self.tops)

    @property
    def boxes(self) -> NDArray[np.float64]:
        """Region of the source image, float64 [B, 4] = x0, y0, x1, y1 in source pixels."""
        scale_x = self.source_widths / self.resized_widths
        scale_y = self.source_heights / self.resized_heights
        right, bottom = self.lefts + self.size[1], self.tops + self.size[0]
        columns = (self.lefts * scale_x, self.tops * scale_y, right * scale_x, bottom * scale_y)
        return np.stack(columns, axis=1)

    def take(self, positions: IntArray | list[int]) -> "ViewGeometry":
        """The geometry of some of the views."""
        arrays = {
            f.name: getattr(self, f.name)[positions]
            for f in fields(self)
            if f.name not in ("size", "interpolation", "box_halving")
        }
        return replace(self, **arrays)


@dataclass(frozen=True)
class ViewRequest:
    """What a view is computed from; arrays [B]."""

    seed: int
    epoch: int | IntArray
    sample_ids: IntArray
    views: IntArray
    heights: IntArray
    widths: IntArray

    def draw(self, what: int) -> U64Array:
        """Hashes of (seed, epoch, sample, view, what), uint64 [B]."""
        return hash_u64(self.seed, self.epoch, self.sample_ids, self.views, what)


@dataclass(frozen=True)
class Placement:
    """Where the crop lies in the resized image; arrays [B]."""

    resized_heights: IntArray
    resized_widths: IntArray
    tops: IntArray
    lefts: IntArray
    flips: NDArray[np.bool_]


def _adm_size(
    request: ViewRequest, covered: tuple[NDArray[np.float64] | int, NDArray[np.float64] | int]
) -> tuple[IntArray, IntArray]:
    """Size ADM resizes to: halve while both sides are at least twice those to be covered, then
    scale until both are reached and one of them exactly."""
    height, width = request.heights.copy(), request.widths.copy()
    tall, wide = (np.asarray(side) for side in covered)
    while (large := (height >= 2 * tall) & (width >= 2 * wide)).any():
        height, width = np.where(large, height // 2, height), np.where(large, width // 2, width)
    scale = np.maximum(tall / height, wide / width)
    return np.rint(height * scale).astype(np.int64), np.rint(width * scale).astype(np.int64)


def adm_center(request: ViewRequest, size: Size) -> Placement:
    """Resize as ADM does and take the central part of `size`."""
    height, width = _adm_size(request, size)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return Placement(height, width, top, left, no_flips(request))


def adm_random(request: ViewRequest, size: Size, flip: bool) -> Placement:
    """Enlarged by up to 1.25, in whole pixels of the shorter side; position uniform."""
    short = min(size)
    drawn = short + uniform_int(request.draw(_DRAW_SHORT_SIDE), -(-5 * short // 4) - short + 1)
    height, width = _adm_size(request, (size[0] * drawn / short, size[1] * drawn / short))
    return random_crop(request, height, width, size, flip)


def random_crop(
    request: ViewRequest, height: IntArray, width: IntArray, size: Size, flip: bool
) -> Placement:
    """A part of `size` at a uniform position in images resized to height x width, [B]."""
    top = uniform_int(request.draw(_DRAW_TOP), height - size[0] + 1)
    left = uniform_int(request.draw(_DRAW_LEFT), width - size[1] + 1)
    return Placement(height, width, top, left, random_flips(request, flip))


def covering_truncated(request: ViewRequest, size: Size) -> tuple[IntArray, IntArray]:
    """The least size that covers `size`; the side that is longer truncated to whole pixels."""
    height, width = request.heights, request.widths
    by_height = size[0] * width >= size[1] * height
    return (
        np.where(by_height, size[0], size[1] * height // width),
        np.where(by_height, size[0] * width // height, size[1]),
    )


def half_to_even(value: IntArray) -> IntArray:
    """Half of each value, ties to the even integer."""
    return np.rint(value / 2).astype(np.int64)


def no_flips(request: ViewRequest) -> NDArray[np.bool_]:
    """False for every view, bool [B]."""
    return np.zeros(len(request.views), dtype=np.bool_)


def random_flips(request: ViewRequest, flip: bool) -> NDArray[np.bool_]:
    """A fair coin for each view, bool [B]; all False without `flip`."""
    return coin(request.draw(_DRAW_FLIP)) if flip else no_flips(request)
