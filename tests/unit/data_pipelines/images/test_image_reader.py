"""Reading encoded samples by id."""

import gc
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError
from data_pipelines.images import reader
from data_pipelines.images.reader import ImageReader, coalesce
from data_pipelines.manifest import ShardManifest


def test_order_of_the_ids_is_kept(small_dataset):
    ids = np.array([7, 0, 14, 7, 3])
    samples = ImageReader(small_dataset).read(ids)
    assert [sample.id for sample in samples] == ids.tolist()
    assert bytes(samples[0].data) == bytes(samples[3].data)


def test_no_ids_give_no_samples(small_dataset):
    assert len(ImageReader(small_dataset).read(np.array([], dtype=np.int64))) == 0


def test_samples_outlive_the_reader(small_dataset):
    sample = ImageReader(small_dataset).read(np.array([5]))[0]
    expected = ImageReader(small_dataset).read(np.array([5]))[0]
    gc.collect()
    assert bytes(sample.data) == bytes(expected.data)


def _flip_a_bit(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_changed_bytes_are_noticed_when_asked(dataset_copy):
    manifest = ShardManifest.open(dataset_copy)
    _flip_a_bit(dataset_copy / manifest.shard(0).name, int(manifest.rows(0).offset[1]) + 50)
    key = manifest.rows(0).key(1)
    ImageReader(manifest).read(np.array([1]))
    with pytest.raises(DataError, match=rf"sample {key} \(id 1\).*crc32"):
        ImageReader(manifest, verify=True).read(np.array([0, 1]))


def test_missing_shard_is_named(dataset_copy):
    manifest = ShardManifest.open(dataset_copy)
    (dataset_copy / manifest.shard(1).name).unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar is missing; restore it"):
        ImageReader(manifest).read(np.array([manifest.first_id(1)]))


def test_shard_of_another_length_is_named(dataset_copy):
    manifest = ShardManifest.open(dataset_copy)
    path = dataset_copy / manifest.shard(1).name
    path.write_bytes(path.read_bytes()[:-512])
    with pytest.raises(DataError, match=r"shard-000001\.tar has \d+ bytes, the manifest says"):
        ImageReader(manifest).read(np.array([manifest.first_id(1)]))


def _ranges(*bounds: tuple[int, int]) -> list[list[int]]:
    """Positions of the requests that ranges of one shard end up in."""
    starts, ends = np.array(bounds).T
    groups = coalesce(0, np.arange(len(bounds)), starts, ends - starts)
    for group in groups:
        assert all(group.start <= start <= end <= group.end for _, start, end in group.members)
    return [[position for position, _, _ in group.members] for group in groups]


def test_near_ranges_share_a_request():
    far = 10 * reader.MAX_GAP_BYTES
    assert _ranges((far, far + 5), (0, 10), (100, 120), (0, 10)) == [[1, 3, 2], [0]]


def test_requests_stay_bounded():
    size = reader.MAX_REQUEST_BYTES // 4
    groups = _ranges(*((i * size, (i + 1) * size) for i in range(10)))
    assert [len(group) for group in groups] == [4, 4, 2]
