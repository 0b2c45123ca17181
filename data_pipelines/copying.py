"""Copies of datasets between places: resumable by file, verified by SHA-256."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data_pipelines.errors import DataError
from data_pipelines.storage.open import Storage
from data_pipelines.storage.scratch import scratch_folder

CHUNK_BYTES = 16 << 20


class Place(Protocol):
    """Somewhere files lie. Paths are relative, with forward slashes."""

    def files(self) -> dict[str, int]:
        """Size of every file by path."""
        ...

    def sha256(self, path: str) -> str:
        """Of a file's content, in hexadecimal."""
        ...

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's content in parts."""
        ...

    def put(self, path: str, source: Path) -> None:
        """Create or replace a file atomically."""
        ...


@dataclass(frozen=True)
class Copied:
    """What a copy did.

    Attributes:
        files: in all.
        sent: files that were not there yet, or differed.
        sent_bytes: their size.
    """

    files: int
    sent: int
    sent_bytes: int


class StoragePlace:
    """A folder or a bucket prefix.

    Args:
        storage: where.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def files(self) -> dict[str, int]:
        return {path: self._storage.size(path) for path in self._storage.list()}

    def sha256(self, path: str) -> str:
        digest = hashlib.sha256()
        for chunk in self.chunks(path):
            digest.update(chunk)
        return digest.hexdigest()

    def chunks(self, path: str) -> Iterator[bytes]:
        size = self._storage.size(path)
        for offset in range(0, size, CHUNK_BYTES):
            yield self._storage.read_range(path, offset, min(CHUNK_BYTES, size - offset))

    def put(self, path: str, source: Path) -> None:
        self._storage.upload(path, source)


def copy_files(source: Place, target: Place, say: Callable[[str], None]) -> Copied:
    """Copy every file that the target does not have with the same content.

    Manifests come last, so that a copy that was interrupted is no dataset yet. Nothing is deleted
    at the target.

    Args:
        source: where from.
        target: where to.
        say: told of progress.

    Raises:
        DataError: the source is empty, or a copy differs from its source.
    """
    wanted, there = source.files(), target.files()
    if not wanted:
        raise DataError("the source has no files; check its path")
    sent = sent_bytes = 0
    for number, path in enumerate(sorted(wanted, key=_manifests_last), start=1):
        digest = source.sha256(path)
        if there.get(path) == wanted[path] and target.sha256(path) == digest:
            continue
        _send(source, target, path, digest)
        sent, sent_bytes = sent + 1, sent_bytes + wanted[path]
        say(f"{number}/{len(wanted)} {path} ({wanted[path]:,} bytes)")
    return Copied(len(wanted), sent, sent_bytes)


def _manifests_last(path: str) -> tuple[bool, str]:
    return path.endswith(".json"), path


def _send(source: Place, target: Place, path: str, digest: str) -> None:
    with scratch_folder() as folder:
        part = folder / "part"
        with part.open("wb") as file:
            for chunk in source.chunks(path):
                file.write(chunk)
        target.put(path, part)
    found = target.sha256(path)
    if found != digest:
        raise DataError(
            f"{path}: the copy has SHA-256 {found[:12]}..., its source {digest[:12]}...;"
            " something changed it meanwhile: copy again"
        )
