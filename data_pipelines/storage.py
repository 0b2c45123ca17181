"""Local folders and S3 buckets through one small interface.

Everything above this file names objects by a relative path with forward slashes. Writes are
atomic everywhere: a reader sees the old object or the new one, never a part of it.
"""

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from data_pipelines.errors import DataError, UserError

FIRST_TRY_TIMEOUT_SECONDS = 1
"""Of the first try of a small range: a stalled body is given up early, and asked for again."""
FIRST_TRY_BYTES = 1 << 20
FIRST_TRY_RETRIES = 2
MAX_SLOW_TRIES = 8
"""First tries in a row that failed where a patient one succeeded, before they are left out."""
SMALL_RANGE_TIMEOUT_SECONDS = 5
"""obstore's default waits half a minute on a stalled body; a short limit and retries do better."""
LARGE_OBJECT_TIMEOUT_SECONDS = 300
MAX_RETRIES = 8
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


class LocalStorage:
    """A folder of this machine (or of a shared file system). It is created on the first write."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def local_path(self, path: str) -> Path:
        target = self.root / path
        if not target.resolve().is_relative_to(self.root.resolve()):
            raise UserError(f"path {path!r} leaves the folder {self.url}; use a path inside it")
        return target

    def read(self, path: str) -> bytes:
        try:
            return self.local_path(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise _missing(self.url, path) from None

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        try:
            with self.local_path(path).open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except FileNotFoundError:
            raise _missing(self.url, path) from None
        return _check_range(self.url, path, offset, size, data)

    def size(self, path: str) -> int:
        try:
            return self.local_path(path).stat().st_size
        except FileNotFoundError:
            raise _missing(self.url, path) from None

    def exists(self, path: str) -> bool:
        return self.local_path(path).is_file()

    def list(self, prefix: str = "") -> list[str]:
        folder = self.root / prefix.rpartition("/")[0]
        found: list[str] = []
        for parent, _, names in os.walk(folder):
            relative = Path(parent).relative_to(self.root)
            found.extend((relative / name).as_posix() for name in names if not _is_temporary(name))
        return sorted(path for path in found if path.startswith(prefix))

    def write(self, path: str, data: bytes) -> None:
        target = self.local_path(path)
        temporary = _write_temporary(target, data)
        temporary.replace(target)
        _sync_folder(target.parent)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = self.local_path(path)
        if target.exists():
            return False
        temporary = _write_temporary(target, data)
        try:
            # A hard link fails where the name exists, unlike a rename, which replaces it.
            os.link(temporary, target)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        _sync_folder(target.parent)
        return True

    def upload(self, path: str, source: Path) -> None:
        target = self.local_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.replace(target)
        else:
            with _temporary_beside(target) as (file, temporary), source.open("rb") as data:
                while chunk := data.read(_COPY_CHUNK_BYTES):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
        _sync_folder(target.parent)

    def delete(self, path: str) -> None:
        self.local_path(path).unlink(missing_ok=True)

    def delete_stale_temporaries(self) -> None:
        newest = time.time() - _STALE_TEMPORARY_SECONDS
        for path in self.root.rglob(f"{_TEMPORARY_PREFIX}*"):
            # Another live writer may finish, and so rename, its file at any moment.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < newest:
                    path.unlink()


class ObjectStorage:
    """A bucket prefix behind the S3 interface, through obstore.

    Credentials, region and endpoint come from the usual AWS_* environment variables
    (AWS_ENDPOINT_URL for other servers than Amazon's).
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._open()

    def _open(self) -> None:
        try:
            import obstore
        except ImportError:
            raise UserError(
                f"{self.url} needs the package obstore, which is not installed; "
                "run: pip install 'ifsq-train[s3]'"
            ) from None
        self._obstore = obstore
        self._first_try = _open_store(self.url, FIRST_TRY_TIMEOUT_SECONDS, FIRST_TRY_RETRIES)
        self._slow_tries = 0
        self._ranges = _open_store(self.url, SMALL_RANGE_TIMEOUT_SECONDS)
        self._objects = _open_store(self.url, LARGE_OBJECT_TIMEOUT_SECONDS)

    def __reduce__(self) -> tuple[Any, ...]:
        return (ObjectStorage, (self.url,))

    def delete_stale_temporaries(self) -> None:
        """An unfinished upload is invisible; buckets expire its parts by their own rules."""

    def local_path(self, path: str) -> None:  # noqa: ARG002
        return None

    def read(self, path: str) -> bytes:
        with _naming(self.url, path):
            answer = self._obstore.get(self._objects, path)
            data = bytes(answer.bytes())
        return _check_range(self.url, path, 0, int(answer.meta["size"]), data)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        if size <= FIRST_TRY_BYTES and self._slow_tries < MAX_SLOW_TRIES:
            data = self._read_quickly(path, offset, size)
            if data is not None:
                return data
        with _naming(self.url, path):
            store = self._ranges if size <= _COPY_CHUNK_BYTES else self._objects
            data = bytes(self._obstore.get_range(store, path, start=offset, length=size))
        return _check_range(self.url, path, offset, size, data)

    def _read_quickly(self, path: str, offset: int, size: int) -> bytes | None:
        """The bytes if they come soon; None after any fault, which a patient try then names."""
        from obstore.exceptions import BaseError

        try:
            data = bytes(self._obstore.get_range(self._first_try, path, start=offset, length=size))
        except (BaseError, FileNotFoundError):
            # Over a link that is always this slow, quick tries would only cost time.
            self._slow_tries += 1
            return None
        self._slow_tries = 0
        return data if len(data) == size else None

    def size(self, path: str) -> int:
        with _naming(self.url, path):
            return int(self._obstore.head(self._ranges, path)["size"])

    def exists(self, path: str) -> bool:
        try:
            self._obstore.head(self._ranges, path)
        except FileNotFoundError:
            return False
        return True

    def list(self, prefix: str = "") -> list[str]:
        folder = prefix.rpartition("/")[0]
        found: list[str] = []
        try:
            with _naming(self.url, prefix):
                for batch in self._obstore.list(self._ranges, prefix=folder or None):
                    found.extend(entry["path"] for entry in batch)
        except DataError as error:
            # Some servers create a bucket with its first object; until then it holds nothing.
            if "NoSuchBucket" not in str(error.__cause__):
                raise
        return sorted(path for path in found if path.startswith(prefix))

    def write(self, path: str, data: bytes) -> None:
        self._obstore.put(self._objects, path, data)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError

        try:
            self._obstore.put(self._objects, path, data, mode="create")
        except AlreadyExistsError:
            return False
        return True

    def upload(self, path: str, source: Path) -> None:
        self._obstore.put(self._objects, path, source)

    def delete(self, path: str) -> None:
        if self.exists(path):
            self._obstore.delete(self._objects, path)


def open_storage(url: str | Path) -> Storage:
    """A folder path or `s3://bucket/prefix` as Storage. Nothing is created or contacted yet.

    Raises:
        UserError: another kind of URL, or obstore missing for s3.
    """
    text = str(url)
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
            raise _missing(storage.url, path)
        yield local
        return
    with tempfile.NamedTemporaryFile(suffix=Path(path).suffix) as file:
        size = storage.size(path)
        for offset in range(0, size, _COPY_CHUNK_BYTES):
            length = min(_COPY_CHUNK_BYTES, size - offset)
            file.write(storage.read_range(path, offset, length))
        file.flush()
        yield Path(file.name)


@contextmanager
def scratch_file(storage: Storage, path: str) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file to fill and then `upload` to `path`; beside it where that is local."""
    local = storage.local_path(path)
    with _temporary_beside(local or Path(tempfile.gettempdir()) / "shard") as opened:
        yield opened


def _open_store(url: str, timeout_seconds: int, max_retries: int = MAX_RETRIES) -> Any:
    from obstore.store import from_url

    endpoint = os.environ.get("AWS_ENDPOINT_URL", "") or os.environ.get("AWS_ENDPOINT", "")
    return from_url(
        url,
        client_options={
            "timeout": f"{timeout_seconds}s",
            "allow_http": endpoint.startswith("http://"),
        },
        retry_config={"max_retries": max_retries},
    )


@contextmanager
def _naming(url: str, path: str) -> Iterator[None]:
    from obstore.exceptions import BaseError

    try:
        yield
    except FileNotFoundError:
        raise _missing(url, path) from None
    except BaseError as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"reading {url}/{path} failed: {first_line}; check the store") from error


def _missing(url: str, path: str) -> DataError:
    return DataError(f"{url}/{path} does not exist; check the path and that it was written")


def _check_range(url: str, path: str, offset: int, size: int, data: bytes) -> bytes:
    if len(data) != size:
        raise DataError(
            f"{url}/{path} has {len(data)} bytes from {offset} where {size} were expected; "
            "the file is shorter than its index says: verify or restore the dataset"
        )
    return data


_TEMPORARY_PREFIX = ".tmp-"
_STALE_TEMPORARY_SECONDS = 600


def _is_temporary(name: str) -> bool:
    return name.startswith(_TEMPORARY_PREFIX)


@contextmanager
def _temporary_beside(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f"{_TEMPORARY_PREFIX}{target.name}-", dir=target.parent
    )
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            temporary.chmod(0o644)
            yield file, temporary
    finally:
        temporary.unlink(missing_ok=True)


def _write_temporary(target: Path, data: bytes) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f"{_TEMPORARY_PREFIX}{target.name}-", dir=target.parent
    )
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
