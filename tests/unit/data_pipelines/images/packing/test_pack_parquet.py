"""Parquet files in the layout of Hugging Face datasets become shards."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.pack import pack_parquet
from data_pipelines.images.packing.parquet_files import ParquetColumns
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import encode, smooth_pixels

NAMES = ["cat", "dog", "owl"]
IMAGES = [encode(smooth_pixels(30 + i, 50, i), "PNG" if i % 3 else "JPEG") for i in range(14)]


def _table(numbers: range, labels: pa.Array | None = None) -> pa.Table:
    images = [{"bytes": IMAGES[i], "path": f"photo.{i}.png"} for i in numbers]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    if labels is None:
        labels = pa.array([i % 3 for i in numbers], pa.int64())
    return pa.table({"image": pa.array(images, kind), "label": labels})


def _huggingface(table: pa.Table) -> pa.Table:
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    facts = {"info": {"features": features}}
    return table.replace_schema_metadata({b"huggingface": json.dumps(facts).encode()})


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """14 images in two files of row groups of 3."""
    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for number, rows in enumerate((range(8), range(8, 14))):
        path = folder / f"train-0000{number}-of-00002.parquet"
        pq.write_table(_huggingface(_table(rows)), path, row_group_size=3)
    return tmp_path / "hub"


def _samples(manifest: ShardManifest):
    return ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))


def test_every_image_is_packed_with_its_bytes_and_label(files, tmp_path):
    manifest = pack_parquet(files, tmp_path / "packed", shard_bytes=9_000)
    assert manifest.classes == NAMES
    assert manifest.num_shards > 2
    assert {(bytes(s.data), s.label) for s in _samples(manifest)} == {
        (data, i % 3) for i, data in enumerate(IMAGES)
    }
    assert len({s.key for s in _samples(manifest)}) == 14


def test_without_a_seed_rows_keep_their_order(files, tmp_path):
    manifest = pack_parquet(files, tmp_path / "packed", shard_bytes=9_000, seed=None)
    assert [bytes(s.data) for s in _samples(manifest)] == IMAGES
    assert _samples(manifest)[9].key == "data/train-00001-of-00002/00000001"


def test_row_groups_larger_than_a_shard_are_split(tmp_path):
    (tmp_path / "hub").mkdir()
    pq.write_table(_table(range(14)), tmp_path / "hub" / "all.parquet")
    manifest = pack_parquet(tmp_path / "hub", tmp_path / "packed", shard_bytes=6_000)
    assert manifest.num_shards >= 3
    assert sorted(bytes(s.data) for s in _samples(manifest)) == sorted(IMAGES)
    assert manifest.classes == ["0", "1", "2"]


def test_interrupted_packing_gives_the_same_bytes(files, tmp_path, tree_bytes):
    pack_parquet(files, tmp_path / "packed", shard_bytes=9_000)
    complete = tree_bytes(tmp_path / "packed")
    (tmp_path / "packed" / "manifest.json").unlink()
    (tmp_path / "packed" / "shard-000001.tar").unlink()
    pack_parquet(files, tmp_path / "packed", shard_bytes=9_000)
    assert tree_bytes(tmp_path / "packed") == complete


def test_names_become_classes_and_missing_ones_none(tmp_path):
    (tmp_path / "hub").mkdir()
    labels = pa.array([["owl", "cat", None][i % 3] for i in range(6)])
    pq.write_table(_table(range(6), labels), tmp_path / "hub" / "a.parquet")
    manifest = pack_parquet(tmp_path / "hub", tmp_path / "packed", seed=None)
    assert manifest.classes == ["cat", "owl"]
    assert [s.label for s in _samples(manifest)] == [1, 0, -1, 1, 0, -1]


def test_class_map_renumbers_stored_names(files, tmp_path):
    class_map = ClassMap({"owl": 0, "dog": 1, "cat": 2}, ("owl", "dog", "cat"))
    manifest = pack_parquet(files, tmp_path / "packed", class_map=class_map, seed=None)
    assert manifest.classes == ["owl", "dog", "cat"]
    assert [s.label for s in _samples(manifest)] == [2 - i % 3 for i in range(14)]


def test_plain_bytes_without_labels(tmp_path):
    (tmp_path / "hub").mkdir()
    table = pa.table({"picture": pa.array(IMAGES[:4], pa.large_binary())})
    pq.write_table(table, tmp_path / "hub" / "a.parquet")
    columns = ParquetColumns("picture", None)
    manifest = pack_parquet(tmp_path / "hub", tmp_path / "packed", columns=columns)
    assert [s.label for s in _samples(manifest)] == [-1] * 4


def test_bad_rows_are_named(tmp_path):
    (tmp_path / "hub").mkdir()
    images = [{"bytes": b"junk", "path": "x.jpg"}, {"bytes": IMAGES[0], "path": None},
              {"bytes": None, "path": "only/a/path.jpg"}]  # fmt: skip
    table = pa.table({"image": images, "label": [0, 0, 0]})
    pq.write_table(table, tmp_path / "hub" / "a.parquet")
    manifest = pack_parquet(tmp_path / "hub", tmp_path / "packed", seed=None)
    lines = (tmp_path / "packed" / "quarantine.jsonl").read_text().splitlines()
    assert manifest.num_samples == 1
    assert {bad["key"]: bad["reason"] for bad in map(json.loads, lines)} == {
        "a.parquet row 0 (x.jpg)": "not a JPEG, PNG or WebP image",
        "a.parquet row 2 (only/a/path.jpg)": (
            "empty file: the row holds a path, not the image's bytes"
        ),
    }


def test_several_splits_at_once_are_refused(files, tmp_path):
    pq.write_table(_table(range(2)), files / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"splits test, train;.*--files '\*train\*'"):
        pack_parquet(files, tmp_path / "packed")
    manifest = pack_parquet(files, tmp_path / "packed", pattern="*train-*")
    assert manifest.num_samples == 14


def test_other_columns_are_listed(files, tmp_path):
    with pytest.raises(UserError, match=r"no column 'img'; it has image, label"):
        pack_parquet(files, tmp_path / "packed", columns=ParquetColumns("img"))
    with pytest.raises(UserError, match="expected binary or a struct"):
        pack_parquet(files, tmp_path / "packed", columns=ParquetColumns("label"))
    with pytest.raises(UserError, match="expected integers or names"):
        pack_parquet(files, tmp_path / "packed", columns=ParquetColumns("image", "image"))


def test_what_is_no_parquet_file_is_named(files, tmp_path):
    (files / "data" / "train-00002.parquet").write_bytes(b"hello" * 10)
    with pytest.raises(DataError, match=r"train-00002\.parquet is no Parquet file"):
        pack_parquet(files, tmp_path / "packed")


def test_folder_without_files_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.parquet files"):
        pack_parquet(tmp_path, tmp_path / "packed")
