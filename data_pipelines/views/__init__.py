"""Which part of an image a view shows: pure geometry, the same for every decoder.

A view is a function of (seed, epoch, sample id, view number, height, width): the image is resized
to `resized_heights x resized_widths` and a part of height and width `size` is cut out at
(top, left), then perhaps mirrored. Training, token extraction and teacher features ask this one
function, so what they see of a view matches by construction. Random choices come from integer
hashes only.

The same part in source pixels is `ViewGeometry.boxes`; resizing that region to
`size` samples exactly the grid of "resize everything, then crop", which is how
the released code works. Its ADM crops halve images of at least twice the size with a box filter
before the bicubic resize; one antialiased resize is sharper there, and darker by about half a grey
level per halving, because that filter rounds ties up twice. `box_halving` asks for it.
"""

from data_pipelines.views.choice import choose_views
from data_pipelines.views.geometry import (
    IntArray,
    Interpolation,
    Placement,
    Size,
    ViewGeometry,
    ViewRequest,
)
from data_pipelines.views.kinds import (
    VIEW_KINDS,
    AdmCenterView,
    AdmRandomView,
    AdmView,
    AnyViewSpec,
    CenterAndRandomView,
    CenterFlipView,
    FlipResizeRandomView,
    ImageSize,
    RawView,
    ResizeCenterView,
    TenCropView,
    ViewSpec,
    shown_size,
    sides,
    view_geometry,
)

__all__ = [
    "VIEW_KINDS",
    "AdmCenterView",
    "AdmRandomView",
    "AdmView",
    "AnyViewSpec",
    "CenterAndRandomView",
    "CenterFlipView",
    "FlipResizeRandomView",
    "ImageSize",
    "IntArray",
    "Interpolation",
    "Placement",
    "RawView",
    "ResizeCenterView",
    "Size",
    "TenCropView",
    "ViewGeometry",
    "ViewRequest",
    "ViewSpec",
    "choose_views",
    "shown_size",
    "sides",
    "view_geometry",
]
