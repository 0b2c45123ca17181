"""Every writer, stopped after any number of operations, leaves the old file or the new one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.errors import DataError
from data_pipelines.manifest import MANIFEST_JSON, MANIFEST_TABLE, ShardManifest, publish_manifest
from data_pipelines.storage.local import LocalStorage, write_atomically
from data_pipelines.tokens.format import TOKENS_JSON, TOKENS_TABLE
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.writer import publish_tokens
from tests.support.disk_record import FailingStorage, every_prefix, recorded_disk
from tests.support.known_tokens import SPEC, entry_of, make_shard

OLD, NEW = b"old contents", b"new contents, and longer"


def by_function(path: Path, data: bytes) -> None:
    write_atomically(path, data)


def by_storage(path: Path, data: bytes) -> None:
    LocalStorage(path.parent).write(path.name, data)


def by_upload(path: Path, data: bytes) -> None:
    source = path.with_name("source")
    source.write_bytes(data)
    LocalStorage(path.parent).upload(path.name, source)


def by_creation(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    assert LocalStorage(path.parent).put_if_absent(path.name, data)


WRITERS = [by_function, by_storage, by_upload, by_creation]


@pytest.mark.parametrize("write", WRITERS)
def test_data_then_name_then_folder(tmp_path: Path, write: Callable[[Path, bytes], None]) -> None:
    """A name never reaches the disk before its data, and has reached it when the call returns."""
    (tmp_path / "file").write_bytes(OLD)
    with recorded_disk() as record:
        write(tmp_path / "file", NEW)
    assert record.operations == [
        ("sync file", f"{len(NEW)} bytes"),
        ("rename", "file"),
        ("sync folder", tmp_path.name),
    ]
    assert (tmp_path / "file").read_bytes() == NEW


@pytest.mark.parametrize("write", [by_function, by_storage])
@pytest.mark.parametrize("fail_at", [0, 1, 2])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE])
def test_a_refused_operation_leaves_old_or_new_and_no_rest(
    tmp_path: Path, write: Callable[[Path, bytes], None], fail_at: int, number: int
) -> None:
    """Also what a network file system tells only when a file is synced."""
    (tmp_path / "file").write_bytes(OLD)
    with recorded_disk(fail_at, number), pytest.raises(OSError, match=os.strerror(number)):
        write(tmp_path / "file", NEW)
    assert (tmp_path / "file").read_bytes() == (NEW if fail_at == 2 else OLD)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_dataset_exists_once_its_manifest_does(
    small_dataset: ShardManifest, tmp_path: Path
) -> None:
    def publish(storage: FailingStorage) -> None:
        publish_manifest(storage, small_dataset.shards(), classes=small_dataset.classes)

    reached = list(every_prefix(publish, tmp_path / "new"))
    assert reached == [0, 1, 2]
    for number in reached:
        storage = FailingStorage(tmp_path / str(number), number)
        if number < 2:
            with pytest.raises(OSError, match="No space left"):
                publish(storage)
            with pytest.raises(DataError, match=f"no finished dataset.*{MANIFEST_JSON}"):
                ShardManifest.open(LocalStorage(storage.root))
        else:
            publish(storage)
            assert storage.changes == [MANIFEST_TABLE, MANIFEST_JSON]
            found = ShardManifest.open(LocalStorage(storage.root))
            assert found.digest == small_dataset.digest


def test_a_token_dataset_exists_once_tokens_json_does(tmp_path: Path) -> None:
    entries = [entry_of(SPEC, i, make_shard(SPEC, i)) for i in range(SPEC.num_shards)]
    for number in (0, 1):
        storage = FailingStorage(tmp_path / str(number), number)
        with pytest.raises(OSError, match="No space left"):
            publish_tokens(storage, SPEC, entries, None)
        with pytest.raises(DataError):
            TokenDataset.open(storage.root)
    storage = FailingStorage(tmp_path / "2", 2)
    publish_tokens(storage, SPEC, entries, None)
    assert storage.changes == [TOKENS_TABLE, TOKENS_JSON]
