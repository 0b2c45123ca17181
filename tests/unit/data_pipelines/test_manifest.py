"""Opening datasets: cheap, located by contents, clear about damage."""

import hashlib
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest

from data_pipelines.errors import DataError
from data_pipelines.manifest import (
    IndexRow,
    ShardEntry,
    ShardManifest,
    content_digest,
    encode_index,
    encode_table,
    publish_manifest,
)
from data_pipelines.storage.open import LocalStorage


def _write_dataset(folder, sizes=(3, 5), label=1) -> ShardManifest:
    storage, shards = LocalStorage(folder), []
    for number, size in enumerate(sizes):
        rows = [
            IndexRow(f"{number}/{i}", 512 * i, 10 + i, label, 20, 30, i, "jpeg")
            for i in range(size)
        ]
        index, data = encode_index(rows, {"note": number}), b"%4096d" % number
        tar_name, index_name = f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"
        storage.write(tar_name, data)
        storage.write(index_name, index)
        shards.append(
            ShardEntry(
                tar_name, size, len(data), hashlib.sha256(data).hexdigest(),
                index_name, hashlib.sha256(index).hexdigest(), content_digest(rows),
            )
        )  # fmt: skip
    publish_manifest(storage, shards, classes=["cat", "dog"])
    return ShardManifest.open(folder)


def test_facts_come_back(tmp_path):
    manifest = _write_dataset(tmp_path)
    assert (manifest.num_samples, manifest.num_shards) == (8, 2)
    assert manifest.shard_sizes.tolist() == [3, 5]
    assert manifest.classes == ["cat", "dog"]
    assert manifest.shard(1).name == "shard-000001.tar"
    assert manifest.first_id(1) == 3


def test_ids_are_located(tmp_path):
    shard, row = _write_dataset(tmp_path).locate(np.array([0, 2, 3, 7]))
    assert shard.tolist() == [0, 0, 1, 1]
    assert row.tolist() == [0, 2, 0, 4]


def test_empty_shards_are_skipped_over(tmp_path):
    shard, row = _write_dataset(tmp_path, sizes=(2, 0, 2)).locate(np.arange(4))
    assert shard.tolist() == [0, 0, 2, 2]
    assert row.tolist() == [0, 1, 0, 1]


def test_id_outside_the_dataset_is_refused(tmp_path):
    with pytest.raises(DataError, match="has 0 to 7"):
        _write_dataset(tmp_path).locate(np.array([8]))


def test_rows_come_back_as_columns(tmp_path):
    rows = _write_dataset(tmp_path).rows(1)
    assert len(rows) == 5
    assert rows.offset.tolist() == [0, 512, 1024, 1536, 2048]
    assert rows.key(2) == "1/2"
    assert rows.format(0) == "jpeg"
    assert rows.metadata == {"note": 1}


def test_indices_are_not_read_when_opening(tmp_path):
    _write_dataset(tmp_path)
    (tmp_path / "index" / "shard-000001.arrow").unlink()
    manifest = ShardManifest.open(tmp_path)
    assert len(manifest.rows(0)) == 3
    with pytest.raises(DataError, match=r"shard-000001\.arrow does not exist"):
        manifest.rows(1)


def test_digest_does_not_depend_on_the_place(tmp_path):
    first, second = _write_dataset(tmp_path / "a"), _write_dataset(tmp_path / "elsewhere" / "b")
    assert first.digest == second.digest


def test_digest_depends_on_the_contents(tmp_path):
    first, second = _write_dataset(tmp_path / "a"), _write_dataset(tmp_path / "b", label=0)
    assert first.digest != second.digest


def test_manifest_travels_between_processes(tmp_path):
    manifest = pickle.loads(pickle.dumps(_write_dataset(tmp_path)))
    assert manifest.rows(0).key(0) == "0/0"


def test_missing_manifest_says_so(tmp_path):
    with pytest.raises(DataError, match="holds no finished dataset"):
        ShardManifest.open(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": "x"}', b"\xff\xfe"])
def test_damaged_manifest_json_says_so(tmp_path, damage):
    _write_dataset(tmp_path)
    (tmp_path / "manifest.json").write_bytes(damage)
    with pytest.raises(DataError, match=r"manifest\.json is not a manifest"):
        ShardManifest.open(tmp_path)


def test_manifest_of_another_version_says_so(tmp_path):
    _write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))
    with pytest.raises(DataError, match="99"):
        ShardManifest.open(tmp_path)


def test_missing_field_says_so(tmp_path):
    _write_dataset(tmp_path)
    path = tmp_path / "manifest.json"
    facts = json.loads(path.read_text())
    del facts["num_samples"]
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match="cannot be used"):
        ShardManifest.open(tmp_path)


@pytest.mark.parametrize("table", [b"", b"half", encode_table(pa.table({"x": [1]}))])
def test_damaged_shard_table_says_so(tmp_path, table):
    _write_dataset(tmp_path)
    (tmp_path / "manifest.arrow").write_bytes(table)
    with pytest.raises(DataError, match=r"manifest\.arrow does not match"):
        ShardManifest.open(tmp_path)


@pytest.mark.parametrize("change", ["a column more", "a column less", "another type"])
def test_a_shard_table_of_other_columns_says_so(tmp_path, change):
    """Even if the table is the one that was written."""
    _write_dataset(tmp_path)
    table = pa.ipc.open_file((tmp_path / "manifest.arrow").read_bytes()).read_all()
    if change == "a column more":
        table = table.append_column("x", table.column("num_samples"))
    elif change == "a column less":
        table = table.drop_columns(table.schema.names[-1:])
    else:
        at = table.schema.get_field_index("num_samples")
        table = table.set_column(at, "num_samples", table.column(at).cast(pa.float64()))
    data = encode_table(table)
    (tmp_path / "manifest.arrow").write_bytes(data)
    path = tmp_path / "manifest.json"
    facts = json.loads(path.read_text()) | {"table_sha256": hashlib.sha256(data).hexdigest()}
    path.write_text(json.dumps(facts))
    with pytest.raises(DataError, match=r"manifest\.arrow has the columns"):
        ShardManifest.open(tmp_path)


def test_stale_index_is_refused(tmp_path):
    manifest = _write_dataset(tmp_path)
    index = tmp_path / "index" / "shard-000000.arrow"
    index.write_bytes(index.read_bytes().replace(b"0/0", b"0/9"))
    with pytest.raises(DataError, match="is not the index recorded"):
        manifest.rows(0)
