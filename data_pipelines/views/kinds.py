"""The kinds of views: the options of each, and where it places its crop."""

# The kinds turn class constants of the base into fields.
# pyright: reportIncompatibleVariableOverride=false

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from data_pipelines.documents import shown
from data_pipelines.errors import UserError
from data_pipelines.views.geometry import (
    IntArray,
    Interpolation,
    Placement,
    Size,
    ViewGeometry,
    ViewRequest,
    adm_center,
    adm_random,
    covering_truncated,
    half_to_even,
    no_flips,
    random_crop,
    random_flips,
)

MAX_SIDE = 65_535
"""Of JPEG's, too."""
ImageSize: TypeAlias = int | tuple[int, int]
"""Side of a square in pixels, or height and width."""


def sides(image_size: ImageSize | Sequence[int]) -> Size:
    """Height and width in pixels; of a list too, as JSON has it."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def shown_size(image_size: ImageSize | Sequence[int]) -> str:
    """`256`, or `256 x 384` (height x width), for people."""
    height, width = sides(image_size)
    return str(height) if height == width else f"{height} x {width}"


def _image_size(found: Any) -> ImageSize:
    """A size as every spec has it: one number where both sides are equal."""
    both = tuple(found) if isinstance(found, list | tuple) else (found, found)
    if len(both) != 2 or not all(type(side) is int and 1 <= side <= MAX_SIDE for side in both):
        raise UserError(
            f"image_size={shown(found)} is not allowed; use 1 to {MAX_SIDE} pixels, or a list of"
            " height and width such as [256, 384]"
        )
    return both[0] if both[0] == both[1] else both


@dataclass(frozen=True)
class ViewSpec(ABC):
    """Base of all view kinds; see the subclasses.

    `image_size` is the side of the result in pixels, or its height and width.
    """

    image_size: ImageSize
    # Read by pydantic where a spec is a field of a recipe: an unknown key is an error there too.
    __pydantic_config__: ClassVar[Any] = {"extra": "forbid"}
    kind: ClassVar[str]
    num_views: ClassVar[int] = 1
    """How many different views of a sample this kind defines within one epoch."""
    interpolation: ClassVar[Interpolation] = "bicubic"

    def __post_init__(self) -> None:
        # One spelling of one view, so that what is made of it is told apart by its size alone.
        object.__setattr__(self, "image_size", _image_size(self.image_size))
        if self.num_views < 1:
            raise UserError(f"num_views={self.num_views} is not allowed; use 1 or more")

    @property
    def size(self) -> Size:
        """Height and width of the result in pixels."""
        return sides(self.image_size)

    @abstractmethod
    def _place(self, request: ViewRequest) -> Placement: ...

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
    """The image as it is; it must have `image_size` already (small datasets, digits)."""

    flip: bool = False
    """Mirror half of the views. Off by default: a mirrored digit is not that digit."""
    kind: Literal["raw"] = "raw"

    def _place(self, request: ViewRequest) -> Placement:
        height, width = self.size
        wrong = (request.heights != height) | (request.widths != width)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise UserError(
                f"view raw needs images of {width}x{height}, but sample "
                f"{request.sample_ids[at]} is {request.widths[at]}x{request.heights[at]} (width x "
                "height); set image_size to match or use adm_center"
            )
        zeros = np.zeros_like(request.heights)
        return Placement(
            request.heights, request.widths, zeros, zeros, random_flips(request, self.flip)
        )


@dataclass(frozen=True, kw_only=True)
class AdmView(ViewSpec):
    """Base of the views that ADM's crops are made into."""

    box_halving: bool = False
    """Halve large images by averages first, as the released code does; decodes all pixels."""


@dataclass(frozen=True, kw_only=True)
class AdmCenterView(AdmView):
    """Centre crop of ADM (Dhariwal & Nichol): resized to cover `image_size`, then its centre."""

    kind: Literal["adm_center"] = "adm_center"

    def _place(self, request: ViewRequest) -> Placement:
        return adm_center(request, self.size)


@dataclass(frozen=True, kw_only=True)
class AdmRandomView(AdmView):
    """Random crop of ADM as the generators are trained on.

    What is covered is `image_size` enlarged by 1 to 1.25 (its shorter side uniform among the
    integers), position uniform. The released LlamaGen training flips half of the views, the DiT
    training none.
    """

    flip: bool = True
    num_views: int = 1
    kind: Literal["adm_random"] = "adm_random"

    def _place(self, request: ViewRequest) -> Placement:
        return adm_random(request, self.size, self.flip)


@dataclass(frozen=True, kw_only=True)
class CenterAndRandomView(AdmView):
    """View 0 is the ADM centre crop, views 1 to `num_views` - 1 are ADM random crops."""

    num_views: int = 2
    flip: bool = True
    """Mirror half of the random views; view 0 is never mirrored."""
    kind: Literal["center_and_random"] = "center_and_random"

    def _place(self, request: ViewRequest) -> Placement:
        center = adm_center(request, self.size)
        random = adm_random(request, self.size, self.flip)
        return Placement(
            *(
                np.where(request.views == 0, getattr(center, f.name), getattr(random, f.name))
                for f in fields(Placement)
            )
        )


@dataclass(frozen=True, kw_only=True)
class CenterFlipView(AdmView):
    """View 0 is the ADM centre crop, view 1 its mirror image."""

    kind: Literal["center_flip"] = "center_flip"
    num_views: ClassVar[int] = 2

    def _place(self, request: ViewRequest) -> Placement:
        center = adm_center(request, self.size)
        return Placement(
            center.resized_heights, center.resized_widths, center.tops, center.lefts,
            request.views == 1,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FlipResizeRandomView(ViewSpec):
    """Training view of the tokenizer: flip half, resize to cover `image_size`, random position.

    The long side is truncated to whole pixels and the resize is bilinear, as the released
    tokenizer training does; there is no scale jitter.
    """

    flip: bool = True
    num_views: int = 1
    kind: Literal["flip_resize_random"] = "flip_resize_random"
    interpolation: ClassVar[Interpolation] = "bilinear"

    def _place(self, request: ViewRequest) -> Placement:
        height, width = covering_truncated(request, self.size)
        return random_crop(request, height, width, self.size, self.flip)


@dataclass(frozen=True, kw_only=True)
class ResizeCenterView(ViewSpec):
    """Evaluation view of the tokenizer: bilinear resize to cover `image_size`, its centre."""

    kind: Literal["resize_center"] = "resize_center"
    interpolation: ClassVar[Interpolation] = "bilinear"

    def _place(self, request: ViewRequest) -> Placement:
        height, width = covering_truncated(request, self.size)
        return Placement(
            height, width,
            half_to_even(height - self.size[0]), half_to_even(width - self.size[1]),
            no_flips(request),
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

    def _place(self, request: ViewRequest) -> Placement:
        height, width = (int(side * self.ratio) for side in self.size)
        outer = adm_center(request, (height, width))
        slack = np.array([height, width]) - np.array(self.size)
        below, right = slack.tolist()
        middle, center = half_to_even(slack).tolist()
        top = np.array([0, 0, below, below, middle])[request.views % 5]
        left = np.array([0, right, 0, right, center])[request.views % 5]
        flips = request.views >= 5
        # Regions are counted in the mirrored image, the crop is placed in the unmirrored one.
        left = np.where(flips, right - left, left)
        return Placement(
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
    request = ViewRequest(
        seed, epoch, np.asarray(sample_ids, dtype=np.int64), views,
        np.asarray(heights, dtype=np.int64), np.asarray(widths, dtype=np.int64),
    )  # fmt: skip
    placed = spec._place(request)
    return ViewGeometry(
        spec.size, spec.interpolation, request.heights, request.widths,
        placed.resized_heights, placed.resized_widths, placed.tops, placed.lefts, placed.flips,
        bool(getattr(spec, "box_halving", False)),
    )  # fmt: skip
