"""Verification counts every row and names every damaged shard."""

from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.shard import decode_shard
from data_pipelines.tokens.verify import RowCount, count_rows, verify_tokens
from data_pipelines.tokens.writer import publish_tokens
from tests.support.known_tokens import SPEC, entry_of, make_rows, make_shard


def test_intact_dataset(dataset_folder: Path):
    report = verify_tokens(dataset_folder)
    assert report.ok
    assert (report.rows, report.expected_rows) == (20, 20)
    assert (report.missing_rows, report.duplicate_rows, report.damaged) == (0, 0, [])


@pytest.mark.parametrize("full", [True, False])
def test_missing_shard(dataset_folder: Path, full: bool):
    (dataset_folder / "shards/tokens-00000001.arrow").unlink()
    report = verify_tokens(dataset_folder, full)
    assert not report.ok
    assert (report.rows, report.missing_rows) == (12, 8)
    assert report.damaged == ["shards/tokens-00000001.arrow: is missing"]


def test_one_flipped_bit_names_its_shard(dataset_folder: Path):
    path = dataset_folder / "shards/tokens-00000002.arrow"
    data = bytearray(path.read_bytes())
    data[data.index(decode_shard(bytes(data), "").packed[1].tobytes())] ^= 4
    path.write_bytes(data)
    report = verify_tokens(dataset_folder)
    assert len(report.damaged) == 1
    assert report.damaged[0].startswith("shards/tokens-00000002.arrow: its sha256")
    assert verify_tokens(dataset_folder, full=False).ok


def test_cut_shard(dataset_folder: Path):
    path = dataset_folder / "shards/tokens-00000000.arrow"
    path.write_bytes(path.read_bytes()[:-50])
    report = verify_tokens(dataset_folder)
    assert report.missing_rows == 8
    assert any("not a readable token shard" in fault for fault in report.damaged)
    assert not verify_tokens(dataset_folder, full=False).ok


def test_shard_in_the_place_of_another(dataset_folder: Path):
    """Shard 1 twice, with a manifest that agrees: rows of shard 0 are missing, others double."""
    storage = open_storage(dataset_folder)
    data = [make_shard(SPEC, index) for index in (1, 1, 2)]
    storage.write("shards/tokens-00000000.arrow", data[0])
    entries = [entry_of(SPEC, index, part) for index, part in enumerate(data)]
    publish_tokens(storage, SPEC, entries, None)
    report = verify_tokens(dataset_folder)
    assert (report.rows, report.missing_rows, report.duplicate_rows) == (20, 8, 8)


def test_rows_are_counted_by_sample_and_view():
    shard = decode_shard(make_shard(SPEC, 0), "shard")
    assert count_rows(SPEC, 0, shard) == RowCount(8)
    assert count_rows(SPEC, 1, shard) == RowCount(8, missing=8, duplicate=8)
    assert len(make_rows(SPEC, 0)) == 8


def test_unfinished_dataset_cannot_be_verified(tmp_path: Path):
    with pytest.raises(DataError, match="holds no token dataset"):
        verify_tokens(tmp_path)
