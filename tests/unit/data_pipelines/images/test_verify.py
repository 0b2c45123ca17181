"""Verification names every damaged shard and sample."""

import pytest

from data_pipelines.errors import DataError
from data_pipelines.images.verify import verify_dataset
from data_pipelines.manifest import ShardManifest


def _places(report) -> set[tuple[str, str | None]]:
    return {(problem.shard, problem.key) for problem in report.problems}


@pytest.mark.parametrize("full", [True, False])
def test_a_sound_dataset_passes(small_dataset, full):
    report = verify_dataset(small_dataset.storage.url, full=full)
    assert report.ok
    assert report.num_samples == 15
    assert "15 samples" in str(report)


def test_a_changed_image_is_named(dataset_copy):
    manifest = ShardManifest.open(dataset_copy)
    path = dataset_copy / manifest.shard(1).name
    data = bytearray(path.read_bytes())
    data[int(manifest.rows(1).offset[0]) + 100] ^= 4
    path.write_bytes(data)
    report = verify_dataset(dataset_copy)
    key = manifest.rows(1).key(0)
    assert _places(report) == {("shard-000001.tar", None), ("shard-000001.tar", key)}
    assert key in str(report)
    assert verify_dataset(dataset_copy, full=False).ok


@pytest.mark.parametrize("full", [True, False])
def test_a_missing_shard_is_named(dataset_copy, full):
    (dataset_copy / "shard-000000.tar").unlink()
    assert _places(verify_dataset(dataset_copy, full=full)) == {("shard-000000.tar", None)}


def test_a_cut_shard_names_the_samples_lost(dataset_copy):
    path = dataset_copy / "shard-000000.tar"
    rows = ShardManifest.open(dataset_copy).rows(0)
    path.write_bytes(path.read_bytes()[: int(rows.offset[1]) + 5])
    places = _places(verify_dataset(dataset_copy))
    assert ("shard-000000.tar", None) in places
    assert {key for _, key in places if key} == {rows.key(i) for i in range(1, len(rows))}


@pytest.mark.parametrize("full", [True, False])
def test_a_damaged_index_is_named(dataset_copy, full):
    path = dataset_copy / "index" / "shard-000001.arrow"
    path.write_bytes(path.read_bytes()[:-10])
    assert _places(verify_dataset(dataset_copy, full=full)) == {("index/shard-000001.arrow", None)}


def test_an_edited_manifest_is_noticed(dataset_copy):
    path = dataset_copy / "manifest.json"
    path.write_text(path.read_text().replace('"class1"', '"klass1"'))
    assert _places(verify_dataset(dataset_copy)) == {("manifest.json", None)}


def test_no_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no finished dataset"):
        verify_dataset(tmp_path)
