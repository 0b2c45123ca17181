"""Folders and Parquet files as they are found, and the released crop's own pixels."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.cpu import CpuDecoder
from data_pipelines.images.packing.classes import read_class_map
from data_pipelines.images.packing.pack import pack_folder, pack_parquet
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from data_pipelines.views import AdmCenterView, ViewSpec, view_geometry
from tests.support.image_samples import encode, smooth_pixels

IMAGE = encode(smooth_pixels(20, 30))


def _folder(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(IMAGE)
    return root


def _labels(manifest: ShardManifest) -> list[int]:
    read = ImageReader(manifest).read(np.arange(manifest.num_samples))
    return [sample.label for sample in read]


def test_links_are_followed_and_loops_are_not(tmp_path):
    _folder(tmp_path / "elsewhere", "b/1.jpg", "b/2.jpg")
    source = _folder(tmp_path / "in", "a/1.jpg")
    (source / "b").symlink_to(tmp_path / "elsewhere" / "b")
    (source / "a" / "up").symlink_to(source)
    manifest = pack_folder(source, tmp_path / "out", seed=None)
    assert (_labels(manifest), manifest.classes) == ([0, 1, 1], ["a", "b"])


def test_folders_called_by_numbers_keep_them(tmp_path):
    source = _folder(tmp_path / "in", *(f"{i}/x.jpg" for i in range(12)))
    assert pack_folder(source, tmp_path / "out").classes == [str(i) for i in range(12)]


def test_splits_and_download_folders_are_no_classes(tmp_path):
    with pytest.raises(UserError, match="splits train, val"):
        pack_folder(_folder(tmp_path / "a", "train/x/1.jpg", "val/x/1.jpg"), tmp_path / "out")
    source = _folder(tmp_path / "b", "00000/000000000.jpg", "00001/000010000.jpg")
    (source / "00000" / "000000000.json").write_text("{}")
    assert pack_folder(source, tmp_path / "out").classes == []


def test_other_formats_are_stored_as_png(tmp_path):
    (tmp_path / "in").mkdir()
    for kind in ("BMP", "GIF", "TIFF"):
        (tmp_path / "in" / f"x.{kind.lower()}").write_bytes(encode(smooth_pixels(9, 9), kind))
    assert pack_folder(tmp_path / "in", tmp_path / "out").num_samples == 3


def test_names_stored_in_another_order_are_matched(tmp_path):
    (tmp_path / "in").mkdir()
    for name, order in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        features = {"label": {"names": order, "_type": "ClassLabel"}}
        facts = json.dumps({"info": {"features": features}}).encode()
        table = pa.table({"image": [IMAGE] * 2, "label": [0, 1]})
        table = table.replace_schema_metadata({b"huggingface": facts})
        pq.write_table(table, tmp_path / "in" / f"{name}.parquet")
    manifest = pack_parquet(tmp_path / "in", tmp_path / "out", seed=None)
    assert (_labels(manifest), manifest.classes) == ([0, 1, 1, 0], ["cat", "dog"])


def test_a_label_of_a_thousand_million_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    table = pa.table({"image": [IMAGE], "label": pa.array([10**9], pa.int64())})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    with pytest.raises(UserError, match="label 1000000000 is outside"):
        pack_parquet(tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.txt", "golden eagle\ngolden retriever\n"),
        ("b.json", '\ufeff["golden eagle", "golden retriever"]'),
        ("c.json", '{"golden eagle": "0", "golden retriever": "1"}'),
        ("d.json", '{"id2label": {"0": "golden eagle", "1": "golden retriever"}}'),
    ],
)
def test_class_maps_in_any_writing(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_class_map(tmp_path / name).names == ("golden eagle", "golden retriever")


def test_box_halving_gives_the_released_pixels():
    pixels = smooth_pixels(150, 210)
    image = Image.fromarray(pixels)
    while min(image.size) >= 64:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = 32 / min(image.size)
    size = (round(image.width * scale), round(image.height * scale))
    whole = np.array(image.resize(size, Image.Resampling.BICUBIC))
    top, left = (whole.shape[0] - 32) // 2, (whole.shape[1] - 32) // 2
    geometry = view_geometry(
        AdmCenterView(32, box_halving=True), seed=0, epoch=0, sample_ids=np.array([0]),
        views=np.array([0]), heights=np.array([150]), widths=np.array([210]),
    )  # fmt: skip
    decoded = CpuDecoder((32, 32), threads=1).decode([encode(pixels, "PNG")], geometry).images[0]
    expected = whole[top : top + 32, left : left + 32]
    np.testing.assert_array_equal(decoded.permute(1, 2, 0).numpy(), expected)


def test_a_view_without_box_halving_is_written_as_before():
    spec = AdmCenterView(32)
    assert spec.to_dict() == {"image_size": 32, "kind": "adm_center"}
    exact = AdmCenterView(32, box_halving=True)
    assert ViewSpec.from_dict(exact.to_dict()) == exact
