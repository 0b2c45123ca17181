"""Which part of an image a view shows: pure geometry, the same for every decoder.

A view is a function of (seed, epoch, sample id, view number, height, width): the image is resized
to `resized_heights x resized_widths` and a square of `image_size` is cut out at (top, left), then
perhaps mirrored. Training, token extraction and teacher features ask this one function, so what
they see of a view matches by construction. Random choices come from integer hashes only.

The same square in source pixels is `ViewGeometry.boxes`; resizing that region to
`image_size x image_size` samples exactly the grid of "resize everything, then crop", which is how
the released code works. Its ADM crops halve images of at least twice the size with a box filter
before the bicubic resize; one antialiased resize is sharper there, and darker by about half a grey
level per halving, because that filter rounds ties up twice. `box_halving` asks for it.
"""

# The kinds turn class constants of the base into fields.
# pyright: reportIncompatibleVariableOverride=false

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import UserError
from data_pipelines.hashing import U64Array, coin, hash_u64, uniform_int

IntArray: TypeAlias = NDArray[np.int64]
Interpolation: TypeAlias = Literal["bicubic", "bilinear"]

_DRAW_SHORT_SIDE, _DRAW_TOP, _DRAW_LEFT, _DRAW_FLIP = 11, 12, 13, 14


@dataclass(frozen=True)
class ViewGeometry:
    """Geometry of B views. All arrays are [B] unless said otherwise; sizes in pixels."""

    image_size: int
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
        right, bottom = self.lefts + self.image_size, self.tops + self.image_size
        columns = (self.lefts * scale_x, self.tops * scale_y, right * scale_x, bottom * scale_y)
        return np.stack(columns, axis=1)

    def take(self, positions: IntArray | list[int]) -> "ViewGeometry":
        """The geometry of some of the views."""
        arrays = {
            f.name: getattr(self, f.name)[positions]
            for f in fields(self)
            if f.name not in ("image_size", "interpolation", "box_halving")
        }
        return replace(self, **arrays)


@dataclass(frozen=True)
class _Request:
    """What a view is computed from; arrays [B]."""

    seed: int
    epoch: int | IntArray
    sample_ids: IntArray
    views: IntArray
    heights: IntArray
    widths: IntArray

    def draw(self, what: int) -> U64Array:
        return hash_u64(self.seed, self.epoch, self.sample_ids, self.views, what)


@dataclass(frozen=True)
class _Placement:
    """Where the crop lies in the resized image; arrays [B]."""

    resized_heights: IntArray
    resized_widths: IntArray
    tops: IntArray
    lefts: IntArray
    flips: NDArray[np.bool_]


@dataclass(frozen=True)
class ViewSpec(ABC):
    """Base of all view kinds; see the subclasses. `image_size` is the side of the result."""

    image_size: int
    # Read by pydantic where a spec is a field of a recipe: an unknown key is an error there too.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    kind: ClassVar[str]
    num_views: ClassVar[int] = 1
    """How many different views of a sample this kind defines within one epoch."""
    interpolation: ClassVar[Interpolation] = "bicubic"

    def __post_init__(self) -> None:
        if self.image_size < 1:
            raise UserError(f"image_size={self.image_size} is not allowed; use 1 or more pixels")
        if self.num_views < 1:
            raise UserError(f"num_views={self.num_views} is not allowed; use 1 or more")

    @abstractmethod
    def _place(self, request: _Request) -> _Placement: ...

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, with the kind; `from_dict` reads it back."""
        values = asdict(self)
        # Left out where it is off: datasets made before it existed go on as they are.
        if not values.get("box_halving", True):
            del values["box_halving"]
        return values

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "AnyViewSpec":
        """The spec described by `values["kind"]` and its options.

        Raises:
            UserError: unknown kind, unknown or missing option.
        """
        kind = values.get("kind")
        spec = VIEW_KINDS.get(str(kind))
        if spec is None:
            raise UserError(f"view kind {kind!r} is unknown; use one of {', '.join(VIEW_KINDS)}")
        allowed = [f.name for f in fields(spec)]
        if unknown := sorted(set(values) - set(allowed)):
            raise UserError(
                f"view {kind} has no option {', '.join(unknown)}; it has {', '.join(allowed)}"
            )
        if "image_size" not in values:
            raise UserError(f"view {kind} needs image_size (pixels); add it")
        return spec(**values)


@dataclass(frozen=True, kw_only=True)
class RawView(ViewSpec):
    """The image as it is; it must be `image_size` squared (small datasets, digits)."""

    flip: bool = False
    """Mirror half of the views. Off by default: a mirrored digit is not that digit."""
    kind: Literal["raw"] = "raw"

    def _place(self, request: _Request) -> _Placement:
        wrong = (request.heights != self.image_size) | (request.widths != self.image_size)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"view raw needs images of {self.image_size}x{self.image_size}, but sample "
                f"{request.sample_ids[at]} is {request.widths[at]}x{request.heights[at]} (width x "
                "height); set image_size to match or use adm_center"
            )
        zeros = np.zeros_like(request.heights)
        return _Placement(
            request.heights, request.widths, zeros, zeros, _random_flips(request, self.flip)
        )


@dataclass(frozen=True, kw_only=True)
class AdmView(ViewSpec):
    """Base of the views that ADM's crops are made into."""

    box_halving: bool = False
    """Halve large images by averages first, as the released code does; decodes all pixels."""


@dataclass(frozen=True, kw_only=True)
class AdmCenterView(AdmView):
    """Centre crop of ADM (Dhariwal & Nichol): short side to `image_size`, central square."""

    kind: Literal["adm_center"] = "adm_center"

    def _place(self, request: _Request) -> _Placement:
        return _adm_center(request, self.image_size)


@dataclass(frozen=True, kw_only=True)
class AdmRandomView(AdmView):
    """Random crop of ADM as the generators are trained on.

    Short side uniform among the integers from `image_size` to 1.25 * `image_size`, position
    uniform. The released LlamaGen training flips half of the views, the DiT training none.
    """

    flip: bool = True
    num_views: int = 1
    kind: Literal["adm_random"] = "adm_random"

    def _place(self, request: _Request) -> _Placement:
        return _adm_random(request, self.image_size, self.flip)


@dataclass(frozen=True, kw_only=True)
class CenterAndRandomView(AdmView):
    """View 0 is the ADM centre crop, views 1 to `num_views` - 1 are ADM random crops."""

    num_views: int = 2
    flip: bool = True
    """Mirror half of the random views; view 0 is never mirrored."""
    kind: Literal["center_and_random"] = "center_and_random"

    def _place(self, request: _Request) -> _Placement:
        center = _adm_center(request, self.image_size)
        random = _adm_random(request, self.image_size, self.flip)
        return _Placement(
            *(
                np.where(request.views == 0, getattr(center, f.name), getattr(random, f.name))
                for f in fields(_Placement)
            )
        )


@dataclass(frozen=True, kw_only=True)
class CenterFlipView(AdmView):
    """View 0 is the ADM centre crop, view 1 its mirror image."""

    kind: Literal["center_flip"] = "center_flip"
    num_views: ClassVar[int] = 2

    def _place(self, request: _Request) -> _Placement:
        center = _adm_center(request, self.image_size)
        return _Placement(
            center.resized_heights, center.resized_widths, center.tops, center.lefts,
            request.views == 1,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlipResizeRandomView(ViewSpec):
    """Training view of the tokenizer: flip half, short side to `image_size`, random square.

    The long side is truncated to whole pixels and the resize is bilinear, as the released
    tokenizer training does; there is no scale jitter.
    """

    flip: bool = True
    num_views: int = 1
    kind: Literal["flip_resize_random"] = "flip_resize_random"
    interpolation: ClassVar[Interpolation] = "bilinear"

    def _place(self, request: _Request) -> _Placement:
        height, width = _short_side_truncated(request, self.image_size)
        top = uniform_int(request.draw(_DRAW_TOP), height - self.image_size + 1)
        left = uniform_int(request.draw(_DRAW_LEFT), width - self.image_size + 1)
        return _Placement(height, width, top, left, _random_flips(request, self.flip))


@dataclass(frozen=True, kw_only=True)
class ResizeCenterView(ViewSpec):
    """Evaluation view of the tokenizer: bilinear resize of the short side, central square."""

    kind: Literal["resize_center"] = "resize_center"
    interpolation: ClassVar[Interpolation] = "bilinear"

    def _place(self, request: _Request) -> _Placement:
        height, width = _short_side_truncated(request, self.image_size)
        return _Placement(
            height, width,
            _half_to_even(height - self.image_size), _half_to_even(width - self.image_size),
            _no_flips(request),
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TenCropView(AdmView):
    """Ten crops of an ADM centre crop of `int(image_size * ratio)` pixels (LlamaGen extraction).

    Views 0-4: top left, top right, bottom left, bottom right, centre; views 5-9: the same regions
    of the mirrored image. LlamaGen uses ratios 1.1 and 1.05.
    """

    ratio: float = 1.1
    kind: Literal["ten_crop"] = "ten_crop"
    num_views: ClassVar[int] = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.ratio < 1:
            raise UserError(f"ten_crop ratio={self.ratio} is not allowed; use 1.0 or more")

    def _place(self, request: _Request) -> _Placement:
        outer = _adm_center(request, int(self.image_size * self.ratio))
        slack = int(self.image_size * self.ratio) - self.image_size
        middle = int(_half_to_even(np.array([slack]))[0])
        top = np.array([0, 0, slack, slack, middle])[request.views % 5]
        left = np.array([0, slack, 0, slack, middle])[request.views % 5]
        flips = request.views >= 5
        # Regions are counted in the mirrored image, the crop is placed in the unmirrored one.
        left = np.where(flips, slack - left, left)
        return _Placement(
            outer.resized_heights, outer.resized_widths, outer.tops + top, outer.lefts + left, flips
        )


AnyViewSpec: TypeAlias = (
    RawView
    | AdmCenterView
    | AdmRandomView
    | CenterAndRandomView
    | CenterFlipView
    | FlipResizeRandomView
    | ResizeCenterView
    | TenCropView
)
VIEW_KINDS: dict[str, type[AnyViewSpec]] = {
    spec.kind: spec
    for spec in (
        RawView, AdmCenterView, AdmRandomView, CenterAndRandomView, CenterFlipView,
        FlipResizeRandomView, ResizeCenterView, TenCropView,
    )
}  # fmt: skip


def view_geometry(
    spec: ViewSpec,
    *,
    seed: int,
    epoch: int | IntArray,
    sample_ids: IntArray,
    views: IntArray,
    heights: NDArray[np.integer],
    widths: NDArray[np.integer],
) -> ViewGeometry:
    """Geometry of B views; a pure function of its arguments, element by element.

    Args:
        epoch: of all samples, or of each, int64 [B].
        sample_ids, views: which view of which sample, int64 [B]; views in [0, spec.num_views).
        heights, widths: size of the source images in pixels, [B].

    Raises:
        UserError: a view number the spec does not have, or (raw) an image of another size.
    """
    views = np.asarray(views, dtype=np.int64)
    if len(views) and not (views.min() >= 0 and views.max() < spec.num_views):
        raise UserError(
            f"views {views.min()} to {views.max()} of {spec.kind} were asked; "
            f"it has views 0 to {spec.num_views - 1}"
        )
    request = _Request(
        seed, epoch, np.asarray(sample_ids, dtype=np.int64), views,
        np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64),
    )  # fmt: skip
    placed = spec._place(request)
    return ViewGeometry(
        spec.image_size, spec.interpolation, request.heights, request.widths,
        placed.resized_heights, placed.resized_widths, placed.tops, placed.lefts, placed.flips,
        bool(getattr(spec, "box_halving", False)),
    )  # fmt: skip


def _adm_size(request: _Request, short_side: IntArray | int) -> tuple[IntArray, IntArray]:
    """Size ADM resizes to: halve while the short side is at least twice the target, then scale."""
    height, width = request.heights.copy(), request.widths.copy()
    while (large := np.minimum(height, width) >= 2 * np.asarray(short_side)).any():
        height, width = np.where(large, height // 2, height), np.where(large, width // 2, width)
    scale = short_side / np.minimum(height, width)
    return np.rint(height * scale).astype(np.int64), np.rint(width * scale).astype(np.int64)


def _adm_center(request: _Request, size: int) -> _Placement:
    height, width = _adm_size(request, size)
    return _Placement(height, width, (height - size) // 2, (width - size) // 2, _no_flips(request))


def _adm_random(request: _Request, size: int, flip: bool) -> _Placement:
    largest = -(-5 * size // 4)
    short_side = size + uniform_int(request.draw(_DRAW_SHORT_SIDE), largest - size + 1)
    height, width = _adm_size(request, short_side)
    top = uniform_int(request.draw(_DRAW_TOP), height - size + 1)
    left = uniform_int(request.draw(_DRAW_LEFT), width - size + 1)
    return _Placement(height, width, top, left, _random_flips(request, flip))


def _short_side_truncated(request: _Request, size: int) -> tuple[IntArray, IntArray]:
    short = np.minimum(request.heights, request.widths)
    return size * request.heights // short, size * request.widths // short


def _half_to_even(value: IntArray) -> IntArray:
    return np.rint(value / 2).astype(np.int64)


def _no_flips(request: _Request) -> NDArray[np.bool_]:
    return np.zeros(len(request.views), dtype=np.bool_)


def _random_flips(request: _Request, flip: bool) -> NDArray[np.bool_]:
    return coin(request.draw(_DRAW_FLIP)) if flip else _no_flips(request)


_DOMAIN_CHOOSE_VIEW = 31


def choose_views(
    seed: int, epoch: int | NDArray[np.int64], sample_ids: NDArray[np.int64], num_views: int
) -> NDArray[np.int64]:
    """Which of the stored views a sample shows in an epoch: uniform in [0, num_views), int64 [B].

    A hash of (seed, epoch, sample id), so the same for every rank and after a resume.
    """
    ids = np.asarray(sample_ids, dtype=np.int64)
    return uniform_int(hash_u64(seed, _DOMAIN_CHOOSE_VIEW, epoch, ids), num_views)
