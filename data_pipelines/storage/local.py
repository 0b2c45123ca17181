"""A folder as storage: temporary names, fsync, atomic renames."""

import contextlib
import ctypes
import errno
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data_pipelines.errors import UserError, checked_range, missing_object
from data_pipelines.regular_files import open_regular

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL, errno.EACCES}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EISDIR}
_UNFINISHED = re.compile(r"\..+\.\d+\.tmp")
"""Temporary names of `write_atomically`."""
_TEMPORARY_PREFIX = ".tmp-"
_STALE_TEMPORARY_SECONDS = 600
_COPY_CHUNK_BYTES = 16 << 20


class LocalStorage:
    """A folder of this machine (or of a shared file system). It is created on the first write."""

    def __init__(self, root: str | Path) -> None:
        self.root = _absolute(root)
        self.url = str(self.root)

    def local_path(self, path: str) -> Path:
        # Links may lead to other disks, and do; names may not climb out of the folder.
        if Path(path).is_absolute() or ".." in Path(path).parts:
            raise UserError(f"path {path!r} leaves the folder {self.url}; use a path inside it")
        return self.root / path

    def read(self, path: str) -> bytes:
        try:
            with open_regular(self.local_path(path)) as file:
                return file.read()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise missing_object(self.url, path) from None

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        try:
            with open_regular(self.local_path(path)) as file:
                file.seek(offset)
                data = file.read(size)
        except FileNotFoundError:
            raise missing_object(self.url, path) from None
        return checked_range(self.url, path, offset, size, data)

    def size(self, path: str) -> int:
        try:
            return self.local_path(path).stat().st_size
        except FileNotFoundError:
            raise missing_object(self.url, path) from None

    def exists(self, path: str) -> bool:
        return self.local_path(path).is_file()

    def list(self, prefix: str = "") -> list[str]:
        folder = self.root / prefix.rpartition("/")[0]
        found: list[str] = []
        for parent, _, names in walk_following_links(folder):
            relative = Path(parent).relative_to(self.root)
            found.extend(
                (relative / name).as_posix()
                for name in names
                if not name.startswith(_TEMPORARY_PREFIX)
            )
        return sorted(path for path in found if path.startswith(prefix))

    def write(self, path: str, data: bytes) -> None:
        target = self.local_path(path)
        with _written_beside(target, data) as temporary:
            temporary.replace(target)
        sync_folder(target.parent)

    def put_if_absent(self, path: str, data: bytes) -> bool:
        target = self.local_path(path)
        if target.exists():
            return False
        with _written_beside(target, data) as temporary:
            if not name_if_free(temporary, target):
                return False
        sync_folder(target.parent)
        return True

    def upload(self, path: str, source: Path) -> None:
        target = self.local_path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_dev == target.parent.stat().st_dev:
            with source.open("rb") as file:
                os.fsync(file.fileno())
            source.replace(target)
        else:
            with temporary_beside(target) as (file, temporary), source.open("rb") as data:
                while chunk := data.read(_COPY_CHUNK_BYTES):
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(target)
        sync_folder(target.parent)

    def delete(self, path: str) -> None:
        self.local_path(path).unlink(missing_ok=True)

    def delete_stale_temporaries(self) -> None:
        newest = time.time() - _STALE_TEMPORARY_SECONDS
        for path in self.root.rglob(".*"):
            if not path.name.startswith(_TEMPORARY_PREFIX) and not _UNFINISHED.fullmatch(path.name):
                continue
            # Another live writer may finish, and so rename, its file at any moment.
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < newest:
                    path.unlink()


def below_home(path: str | Path) -> Path:
    """A path with ``~`` and ``~user`` replaced by the home folder they name.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"{path}: there is no such user; write the path out") from None


def _absolute(place: str | Path) -> Path:
    """Raises UserError for what can be no folder of this machine."""
    if "\0" in str(place):
        raise UserError(f"the path {str(place)!r} holds a NUL character; use another one")
    found = below_home(place).absolute()
    # POSIX keeps two slashes apart from one; no system here does.
    return Path(f"/{str(found).lstrip('/')}")


def walk_following_links(
    folder: Path, on_loop: Callable[[str], None] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, into folders that are links too, except where one leads back to a folder above.

    Args:
        on_loop: called with the path of every link that is not followed.

    Raises:
        OSError: a folder that may not be read: what it holds would be lost.
    """
    above = [folder.resolve(), *folder.resolve().parents]
    ancestors: dict[str, frozenset[tuple[int, int]]] = {
        str(folder): frozenset(_identity(str(path)) for path in above if path.exists())
    }
    for parent, folders, names in os.walk(folder, onerror=raise_unless_missing, followlinks=True):
        known = ancestors.pop(parent)
        kept = []
        for name in sorted(folders):
            path = f"{parent.rstrip('/')}/{name}"  # as os.walk will call it
            try:
                identity = _identity(path)
            except OSError:
                continue  # gone meanwhile
            if identity in known:
                if on_loop is not None:
                    on_loop(path)
                continue
            kept.append(name)
            ancestors[path] = known | {identity}
        folders[:] = kept
        yield parent, folders, names
        for name in set(kept) - set(folders):
            del ancestors[f"{parent.rstrip('/')}/{name}"]


def _identity(path: str) -> tuple[int, int]:
    facts = Path(path).stat()
    return facts.st_dev, facts.st_ino


def raise_unless_missing(error: OSError) -> None:
    """For os.walk, which passes over folders it may not read: what they hold would be lost."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


@contextmanager
def temporary_beside(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A temporary file in the folder of `target`, to be renamed to it; deleted if it is not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        prefix=f"{_TEMPORARY_PREFIX}{target.name}-", dir=target.parent
    )
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            temporary.chmod(0o644)
            yield file, temporary
    except OSError as error:
        # A full disk is met while writing, where the system names no file.
        error.filename = error.filename or str(target)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _written_beside(target: Path, data: bytes) -> Iterator[Path]:
    """As `temporary_beside`, with the data on the disk."""
    with temporary_beside(target) as (file, temporary):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        yield temporary


def name_if_free(temporary: Path, target: Path) -> bool:
    """Give a complete file its name, unless the name is taken; whether it was free.

    The temporary name may remain. A hard link does this everywhere at once; file systems without
    them (FAT, some network and container mounts) get a rename that refuses to replace, or where
    that is not known either, a look before a rename.
    """
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
    code = _rename_if_free(temporary, target)
    if code == errno.EEXIST or (code and target.exists()):
        return False
    if code:
        temporary.replace(target)
    return True


def _rename_if_free(source: Path, target: Path) -> int:
    """Linux' renameat2 with RENAME_NOREPLACE; 0, or the number of the error."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return errno.ENOSYS
    here, no_replace = -100, 1
    done = call(here, os.fsencode(source), here, os.fsencode(target), no_replace)
    return ctypes.get_errno() if done else 0


def sync_folder(folder: Path) -> None:
    """Names that were given or taken in the folder are on the disk afterwards.

    Some file systems do not sync folders, or do not let them be opened; they order names
    themselves.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            error.filename = error.filename or str(folder)
            raise
    finally:
        os.close(descriptor)


def _start_writing(file: BinaryIO) -> None:
    """Ask for what is in the file to be put on the disk, without waiting."""
    with contextlib.suppress(OSError, AttributeError):
        # Linux starts writing dirty pages when told that they are no longer needed.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_atomically(path: Path, data: bytes | Iterable[memoryview]) -> None:
    """A reader, or a kill at any moment, finds the old file or the new one.

    Chunks of a large file are on their way to the disk while the next ones are made.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in [data] if isinstance(data, bytes) else data:
                file.write(chunk)
                if len(chunk) >= _COPY_CHUNK_BYTES:
                    _start_writing(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        # A full disk is met while writing, where the system names no file.
        error.filename = error.filename or str(path)
        raise
    sync_folder(path.parent)
