"""What reaches the disk in which order, and writers whose n-th operation fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.storage.local import LocalStorage


class DiskRecord:
    """Syncs and renames, in order, as ``(operation, name)``; the n-th may fail.

    A sync of a file names the file and says how many bytes were in it; temporary names are shown
    as ``*``. Nothing is really synced: that takes long and no test cuts the power.
    """

    def __init__(self, fail_at: int | None = None, number: int = errno.ENOSPC) -> None:
        self.operations: list[tuple[str, str]] = []
        self._fail_at, self._number = fail_at, number

    def note(self, operation: str, name: str) -> None:
        if self._fail_at == len(self.operations):
            raise OSError(self._number, os.strerror(self._number))
        self.operations.append((operation, name))


@contextmanager
def recorded_disk(fail_at: int | None = None, number: int = errno.ENOSPC) -> Iterator[DiskRecord]:
    """Records for a block; operation `fail_at` is refused instead, with the error `number`."""
    record = DiskRecord(fail_at, number)
    real_replace, real_link = Path.replace, os.link

    def sync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.is_dir():
            record.note("sync folder", path.name)
        else:
            record.note("sync file", f"{path.stat().st_size} bytes")

    def replace(self: Path, target: Any) -> Path:
        record.note("rename", Path(target).name)
        return real_replace(self, target)

    def link(source: Any, target: Any, **options: Any) -> None:
        record.note("rename", Path(target).name)
        real_link(source, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        patch.setattr(Path, "replace", replace)
        patch.setattr(os, "link", link)
        yield record


class FailingStorage(LocalStorage):
    """A folder that records its changes and refuses from the `fail_at`-th one on."""

    def __init__(self, root: Path, fail_at: int | None = None) -> None:
        super().__init__(root)
        self.changes: list[str] = []
        self._fail_at = fail_at

    def _change(self, path: str) -> None:
        if self._fail_at is not None and len(self.changes) >= self._fail_at:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        self.changes.append(path)

    def write(self, path: str, data: bytes) -> None:
        self._change(path)
        super().write(path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        self._change(path)
        return super().put_if_absent(path, data)

    def upload(self, path: str, source: Path) -> None:
        self._change(path)
        super().upload(path, source)

    def delete(self, path: str) -> None:
        self._change(path)
        super().delete(path)


def every_prefix(write: Callable[[FailingStorage], object], root: Path) -> Iterator[int]:
    """Run `write` refused after 0, 1, 2, ... changes; yields each number, the whole last."""
    number = 0
    while True:
        storage = FailingStorage(root, number)
        try:
            write(storage)
        except OSError:
            yield number
            number += 1
            continue
        yield number
        return


def refused_at_every_change(
    job: Callable[[Path], object],
    folder: Path,
    *,
    start: Callable[[Path], object] = lambda _: None,
    kinds: tuple[str, ...] = ("sync file", "rename", "sync folder"),
) -> Iterator[tuple[Path, list[str]]]:
    """Run a job once for every change that it makes to the disk, refused at that change.

    Args:
        job: given an output folder that `start` has prepared.
        folder: below it every run has its own output folder.
        start: makes the output folder's first state.
        kinds: of changes that are refused.

    Yields:
        The output folder as the refused job left it, and the names of the files that it renamed.
    """
    start(folder / "whole")
    with recorded_disk() as whole:
        job(folder / "whole")
    for number, (operation, _) in enumerate(whole.operations):
        if operation not in kinds:
            continue
        output = folder / f"refused-{number}"
        start(output)
        with recorded_disk(number) as record, pytest.raises(Exception, match="No space left"):
            job(output)
        yield output, [name for kind, name in record.operations if kind == "rename"]
