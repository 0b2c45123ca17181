"""Geometry of views: as the released code, a pure function, independent of the batch."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from data_pipelines.errors import UserError
from data_pipelines.views import (
    VIEW_KINDS,
    AdmCenterView,
    AdmRandomView,
    CenterAndRandomView,
    CenterFlipView,
    FlipResizeRandomView,
    RawView,
    ResizeCenterView,
    TenCropView,
    ViewGeometry,
    ViewSpec,
    choose_views,
    view_geometry,
)

BICUBIC, BILINEAR, BOX = (
    Image.Resampling.BICUBIC,
    Image.Resampling.BILINEAR,
    Image.Resampling.BOX,
)


def _geometry(spec, ids, height=90, width=70, *, seed=3, epoch=0, views=None) -> ViewGeometry:
    ids = np.atleast_1d(ids)
    views = np.zeros(len(ids), dtype=np.int64) if views is None else np.asarray(views)
    return view_geometry(
        spec,
        seed=seed,
        epoch=epoch,
        sample_ids=ids,
        views=views,
        heights=np.full(len(ids), height),
        widths=np.full(len(ids), width),
    )


def _adm_pixels(source: np.ndarray, geometry: ViewGeometry, at: int = 0) -> np.ndarray:
    """The released code's way: halve, resize everything, crop; with our numbers."""
    image = Image.fromarray(source)
    height, width = int(geometry.resized_heights[at]), int(geometry.resized_widths[at])
    while min(image.size) >= 2 * min(height, width):
        image = image.resize((image.width // 2, image.height // 2), BOX)
    pixels = np.asarray(image.resize((width, height), BICUBIC))
    top, left, (size, _) = int(geometry.tops[at]), int(geometry.lefts[at]), geometry.size
    crop = pixels[top : top + size, left : left + size]
    return crop[:, ::-1] if geometry.flips[at] else crop


@pytest.fixture(scope="module")
def golden(request) -> dict[str, np.ndarray]:
    path: Path = request.getfixturevalue("golden_dir")
    return load_file(path / "preprocess.safetensors")


@pytest.mark.parametrize("image", [0, 1])
def test_adm_center_is_the_released_crop(golden, image):
    source = golden[f"img{image}"]
    geometry = _geometry(AdmCenterView(32), 0, *source.shape[:2])
    np.testing.assert_array_equal(_adm_pixels(source, geometry), golden[f"center{image}"])


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("view", range(10))
def test_ten_crop_is_the_released_crop(golden, image, view):
    source = golden[f"img{image}"]
    geometry = _geometry(TenCropView(32), 0, *source.shape[:2], views=[view])
    np.testing.assert_array_equal(_adm_pixels(source, geometry), golden[f"tencrop{image}"][view])


@pytest.mark.parametrize(("image", "draws"), [(0, (32, 5, 0)), (1, (40, 1, 29))])
def test_adm_random_reaches_the_released_crop_for_its_draws(golden, image, draws):
    source, spec = golden[f"img{image}"], AdmRandomView(32, flip=False)
    ids = np.arange(200_000 if image else 2000)
    geometry = _geometry(spec, ids, *source.shape[:2])
    short = np.minimum(geometry.resized_heights, geometry.resized_widths)
    same = (short == draws[0]) & (geometry.tops == draws[1]) & (geometry.lefts == draws[2])
    at = int(np.argmax(same))
    assert same[at]
    np.testing.assert_array_equal(_adm_pixels(source, geometry, at), golden[f"random{image}"])


@pytest.mark.parametrize("image", [0, 1])
def test_resize_center_is_the_released_validation_transform(golden, image):
    source = golden[f"img{image}"]
    box = tuple(_geometry(ResizeCenterView(32), 0, *source.shape[:2]).boxes[0])
    pixels = np.asarray(Image.fromarray(source).resize((32, 32), BILINEAR, box=box))
    difference = pixels.transpose(2, 0, 1) - (golden[f"valid{image}"] + 1) * 127.5
    # One rounding to whole grey levels; a shift of the box would cost tens on this noise.
    assert np.abs(difference).max() < 1


@pytest.mark.parametrize("image", [0, 1])
def test_tokenizer_training_view_resizes_as_released(golden, image):
    source = golden[f"img{image}"]
    geometry = _geometry(FlipResizeRandomView(32), 0, *source.shape[:2])
    resized = (int(geometry.resized_heights[0]), int(geometry.resized_widths[0]))
    assert resized == golden[f"train_resized{image}"].shape[1:]


def test_box_covers_the_same_grid_as_resize_then_crop():
    geometry = _geometry(AdmCenterView(256), 0, height=375, width=500)
    assert (int(geometry.resized_heights[0]), int(geometry.resized_widths[0])) == (256, 341)
    np.testing.assert_allclose(
        geometry.boxes[0], [42 * 500 / 341, 0.0, 298 * 500 / 341, 375.0], rtol=1e-12
    )


def test_short_sides_of_random_crops_are_uniform_up_to_a_quarter_more():
    geometry = _geometry(AdmRandomView(256), np.arange(65_000), height=400, width=600)
    short = np.minimum(geometry.resized_heights, geometry.resized_widths)
    counts = np.bincount(short)
    assert short.min() == 256
    assert short.max() == 320
    assert counts[256:].min() > 850


@pytest.mark.parametrize("kind", [k for k in VIEW_KINDS if k != "raw"])
@pytest.mark.parametrize("size", [(90, 70), (8, 8), (33, 200), (500, 37), (129, 64)])
def test_crops_stay_inside_the_image(kind, size):
    spec = ViewSpec.from_dict({"kind": kind, "image_size": 32})
    views = np.arange(200) % spec.num_views
    geometry = _geometry(spec, np.arange(200), *size, views=views)
    assert (geometry.boxes[:, :2] >= 0).all()
    assert (geometry.boxes[:, 2] <= size[1] + 1e-9).all()
    assert (geometry.boxes[:, 3] <= size[0] + 1e-9).all()
    assert (geometry.tops + 32 <= geometry.resized_heights).all()
    assert (geometry.lefts + 32 <= geometry.resized_widths).all()


def test_a_view_does_not_depend_on_its_batch():
    together = _geometry(AdmRandomView(32), np.arange(50))
    alone = _geometry(AdmRandomView(32), np.array([17]))
    np.testing.assert_array_equal(together.boxes[17], alone.boxes[0])
    assert together.flips[17] == alone.flips[0]


@pytest.mark.parametrize("change", [{"seed": 4}, {"epoch": 1}])
def test_seed_and_epoch_change_the_crop(change):
    spec, ids = AdmRandomView(32), np.arange(20)
    assert not np.array_equal(_geometry(spec, ids).boxes, _geometry(spec, ids, **change).boxes)


def test_views_of_a_sample_differ():
    spec = AdmRandomView(32, num_views=8)
    boxes = _geometry(spec, np.zeros(8, dtype=np.int64), views=np.arange(8)).boxes
    assert len(np.unique(boxes, axis=0)) > 4


def test_random_crops_are_pinned_across_machines():
    geometry = _geometry(AdmRandomView(64), np.arange(4), height=300, width=400)
    found = [geometry.resized_heights, geometry.tops, geometry.lefts, geometry.flips]
    assert [array.astype(int).tolist() for array in found] == PINNED


def test_chosen_views_are_pinned_across_machines():
    """A release that chose others would go on with another training."""
    found = [choose_views(3, epoch, np.arange(8), 5).tolist() for epoch in (0, 1)]
    assert found == [[3, 2, 3, 1, 3, 2, 1, 0], [4, 0, 2, 1, 0, 4, 1, 4]]


def test_half_of_the_views_are_mirrored_unless_switched_off():
    ids = np.arange(10_000)
    assert abs(_geometry(AdmRandomView(32), ids).flips.mean() - 0.5) < 0.02
    assert not _geometry(AdmRandomView(32, flip=False), ids).flips.any()
    assert not _geometry(RawView(32), ids, 32, 32).flips.any()


def test_center_and_random_starts_with_the_centre():
    spec = CenterAndRandomView(32, num_views=3)
    geometry = _geometry(spec, np.zeros(3, dtype=np.int64), views=[0, 1, 2])
    center = _geometry(AdmCenterView(32), 0)
    random = _geometry(AdmRandomView(32, num_views=3), np.zeros(2, dtype=np.int64), views=[1, 2])
    np.testing.assert_array_equal(geometry.boxes[0], center.boxes[0])
    np.testing.assert_array_equal(geometry.boxes[1:], random.boxes)
    assert not geometry.flips[0]


def test_center_flip_is_the_centre_and_its_mirror_image():
    geometry = _geometry(CenterFlipView(32), np.array([5, 5]), views=[0, 1])
    np.testing.assert_array_equal(geometry.boxes[0], geometry.boxes[1])
    assert geometry.flips.tolist() == [False, True]


def test_ten_crop_of_twice_the_size_reaches_the_corners():
    geometry = _geometry(TenCropView(image_size=8, ratio=2.0), [0] * 10, 16, 16, views=range(10))
    places = list(zip(geometry.tops.tolist(), geometry.lefts.tolist(), strict=True))
    assert places[:5] == [(0, 0), (0, 8), (8, 0), (8, 8), (4, 4)]
    assert places[5:] == [(0, 8), (0, 0), (8, 8), (8, 0), (4, 4)]


def test_views_halve_where_they_are_told_to_only():
    for kind, spec in VIEW_KINDS.items():
        assert not _geometry(spec(image_size=90), [0], 90, 90).box_halving, kind
    assert _geometry(AdmCenterView(image_size=90, box_halving=True), [0], 90, 90).box_halving


def test_a_view_of_one_pixel_is_one():
    assert _geometry(RawView(image_size=1), [0], 1, 1).tops.tolist() == [0]
    with pytest.raises(UserError, match="image_size=0 is not allowed"):
        RawView(image_size=0)


def test_raw_refuses_another_size():
    with pytest.raises(UserError, match=r"sample 9 is 8x9 \(width x height\)"):
        _geometry(RawView(8), np.array([9]), height=9, width=8)


def test_view_number_beyond_the_last_is_refused():
    with pytest.raises(UserError, match="it has views 0 to 9"):
        _geometry(TenCropView(32), np.array([0]), views=[10])


@pytest.mark.parametrize("kind", VIEW_KINDS)
def test_spec_survives_json(kind):
    spec = ViewSpec.from_dict({"kind": kind, "image_size": 48})
    assert ViewSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "square", "image_size": 8}, "view kind 'square' is unknown; use one of raw"),
        ({"kind": "raw", "image_size": 8, "flop": True}, "raw has no option flop; it has"),
        ({"kind": "raw"}, "raw needs image_size"),
        ({"kind": "raw", "image_size": 0}, "image_size=0 is not allowed"),
        ({"kind": "adm_random", "image_size": 8, "num_views": 0}, "num_views=0 is not allowed"),
        ({"kind": "ten_crop", "image_size": 8, "ratio": 0.5}, "ratio=0.5 is not allowed"),
    ],
)
def test_wrong_spec_is_refused(values, message):
    with pytest.raises(UserError, match=message):
        ViewSpec.from_dict(values)


PINNED = [[77, 66, 66, 71], [6, 2, 0, 5], [37, 11, 6, 22], [0, 0, 1, 0]]
