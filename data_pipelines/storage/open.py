"""Local folders and S3 buckets through one small interface.

Everything above this file names objects by a relative path with forward slashes. Writes are
atomic everywhere: a reader sees the old object or the new one, never a part of it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from data_pipelines.errors import UserError, missing_object
from data_pipelines.storage.credentials import (
    HOW_INSTEAD,
    has_credentials,
    without_credentials,
)
from data_pipelines.storage.local import LocalStorage, temporary_beside
from data_pipelines.storage.objects import ObjectStorage
from data_pipelines.storage.scratch import scratch_folder

_COPY_CHUNK_BYTES = 16 << 20


class Storage(Protocol):
    """A folder or a bucket prefix. Paths are relative, with forward slashes."""

    url: str

    def read(self, path: str) -> bytes:
        """The whole object. Raises DataError if it does not exist."""
        ...

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises DataError if there are fewer."""
        ...

    def size(self, path: str) -> int:
        """Length in bytes. Raises DataError if it does not exist."""
        ...

    def exists(self, path: str) -> bool: ...

    def list(self, prefix: str = "") -> list[str]:
        """Sorted paths of all objects whose path starts with `prefix`, in all subfolders."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace atomically."""
        ...

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Create atomically; False if it exists already. Of racing writers exactly one wins."""
        ...

    def upload(self, path: str, source: Path) -> None:
        """Create or replace atomically from a local file of any size; may move the file."""
        ...

    def delete(self, path: str) -> None:
        """Remove; nothing happens if it does not exist."""
        ...

    def delete_stale_temporaries(self) -> None:
        """Remove what killed writers left behind: temporary files untouched for ten minutes."""
        ...

    def local_path(self, path: str) -> Path | None:
        """Where the object lies on this machine; None for object storage."""
        ...


def open_storage(url: str | Path) -> Storage:
    """A folder path or `s3://bucket/prefix` as Storage. Nothing is created or contacted yet.

    Raises:
        UserError: another kind of URL, one with credentials, or obstore missing for s3.
    """
    text = str(url)
    if has_credentials(text):
        raise UserError(f"{without_credentials(text)}: {HOW_INSTEAD}")
    if text.startswith("s3://"):
        return ObjectStorage(text)
    if "://" in text:
        raise UserError(f"{text} is not a storage we know; use a folder path or s3://bucket/prefix")
    return LocalStorage(text)


@contextmanager
def as_local_file(storage: Storage, path: str) -> Iterator[Path]:
    """The object as a file: itself where it is local, a temporary copy otherwise."""
    local = storage.local_path(path)
    if local is not None:
        if not local.is_file():
            raise missing_object(storage.url, path)
        yield local
        return
    with scratch_folder() as folder:
        copy = folder / f"copy{Path(path).suffix}"
        size = storage.size(path)
        with copy.open("wb") as file:
            for offset in range(0, size, _COPY_CHUNK_BYTES):
                length = min(_COPY_CHUNK_BYTES, size - offset)
                file.write(storage.read_range(path, offset, length))
        yield copy


@contextmanager
def scratch_file(storage: Storage, path: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file to fill and then `upload` to `path`; beside it where that is local."""
    local = storage.local_path(path)
    if local is not None:
        with temporary_beside(local) as opened:
            yield opened
        return
    with scratch_folder() as folder, temporary_beside(folder / "shard") as opened:
        yield opened
