"""Disks and file systems that refuse: one line that names file and remedy, or a way around it."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any, NoReturn

import pytest

from data_pipelines.errors import DataError, as_user_error
from data_pipelines.storage.local import LocalStorage, name_if_free, sync_folder, write_atomically
from data_pipelines.storage.mapped import MappedFile


def refuse(number: int) -> Any:
    def call(*_arguments: Any, **_options: Any) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return call


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
@pytest.mark.parametrize("rename", ["atomic", "unknown"])
def test_without_hard_links_the_first_of_two_writers_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, rename: str
) -> None:
    monkeypatch.setattr(os, "link", refuse(number))
    if rename == "unknown":
        monkeypatch.setattr("data_pipelines.storage.local._rename_if_free", lambda *_: errno.ENOSYS)
    storage = LocalStorage(tmp_path)
    assert storage.put_if_absent("file", b"first")
    assert not storage.put_if_absent("file", b"second")
    (tmp_path / "late").write_bytes(b"third")
    assert not name_if_free(tmp_path / "late", tmp_path / "file")
    assert storage.read("file") == b"first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "late"]


def test_a_link_refused_for_another_reason_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        LocalStorage(tmp_path).put_if_absent("file", b"first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP, errno.EBADF])
def test_folders_that_cannot_be_synced_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.fsync

    def sync(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    write_atomically(tmp_path / "a", b"1")
    LocalStorage(tmp_path).write("b", b"2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_folder_whose_disk_fails_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(OSError, match="Input/output error") as caught:
        sync_folder(tmp_path)
    assert str(tmp_path) in str(as_user_error(caught.value, passing=True))


def test_a_place_without_memory_maps_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shard").write_bytes(b"12345")

    class NoMaps(mmap.mmap):
        def __new__(cls, *_arguments: Any, **_options: Any) -> NoReturn:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr("data_pipelines.storage.mapped._Map", NoMaps)
    with pytest.raises(DataError, match=r"shard cannot be read.*allows memory maps"):
        MappedFile(tmp_path / "shard", 5)


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "choose another place"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "dmesg"),
        (errno.ESTALE, "mount it again"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_a_remedy(number: int, remedy: str) -> None:
    error = OSError(number, os.strerror(number), "some/file")
    message = str(as_user_error(error, passing=True))
    assert message.startswith("some/file: ")
    assert remedy in message
    assert "\n" not in message
