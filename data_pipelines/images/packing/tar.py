"""Where the members of a tar file lie, with the damage that `tarfile` keeps silent about."""

import hashlib
import io
import posixpath
import struct
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.images.impostors import what_it_is
from data_pipelines.regular_files import open_regular

_BLOCK_BYTES = 512
_RECORD_BYTES = 10_240
_END_BYTES = 2 * _BLOCK_BYTES
_CHUNK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 20
_IS_DIGIT = bytes(48 if 48 <= value < 58 else 0 for value in range(256))
_LONG_NUMBER = b"0" * 300
"""Patterns of `tarfile` take quadratic time for runs of digits (CVE-2024-6232)."""
_MAX_LINKS = 40
_NO_FILES = (b"D", b"V")
"""GNU tar's lists of folders, and its label of the archive. Types unknown to POSIX are files."""
_DAMAGE = (
    tarfile.TarError,
    ValueError,
    OverflowError,
    RecursionError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    struct.error,
)
"""What tarfile raises for bytes that are no headers."""


@dataclass(frozen=True)
class TarMember:
    """A file in a tar; its bytes are `[offset, offset + size)` of the tar.

    Attributes:
        problem: why its bytes cannot be read there; empty for nearly all.
        archive: which of several tars that were written one behind the other.
    """

    name: str
    offset: int
    size: int
    problem: str = ""
    archive: int = 0


def scan_tar(path: Path, name: str) -> list[TarMember]:
    """All files of a tar, reading only headers. `name` is used in messages.

    Links lead to the bytes they stand for. Archives written one behind the other are one.

    Raises:
        DataError: the tar is cut, a header is damaged, part of it is zeros, or it is no tar; says
            at which byte. (`tarfile` takes each of these for the end and loses the rest silently.)
    """
    size = path.stat().st_size
    members: list[TarMember] = []
    with open_regular(path) as file:
        _refuse_impostor(file.read(_BLOCK_BYTES), size, name)
        start = archive = 0
        while start < size:
            found, end = _scan_archive(file, start, size, name)
            members += [replace(member, archive=archive) for member in found]
            start = _behind_zeros(file, start, end, size, name)
            archive += 1
    return members


def split_name(name: str) -> tuple[str, str]:
    """`a.b/c.d.JPG` to (`a.b/c`, `d.jpg`), as WebDataset does; no dot gives an empty extension."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Headers(io.RawIOBase):
    """The file for tarfile, which trusts sizes in damaged headers and would read gigabytes."""

    def __init__(self, file: io.BufferedReader) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        data = self._file.read(size)
        if _LONG_NUMBER in data.translate(_IS_DIGIT):
            raise tarfile.ReadError(f"a header with a number of {len(_LONG_NUMBER)} digits or more")
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _refuse_impostor(head: bytes, size: int, name: str) -> None:
    if size == 0:
        raise DataError(f"tar {name} is empty (0 bytes); write it again, or delete it")
    found = what_it_is(head) if any(head) else None
    if found and found != "a tar archive":
        raise DataError(f"tar {name} is not a tar but {found}")


def _scan_archive(
    file: io.BufferedReader, start: int, size: int, name: str
) -> tuple[list[TarMember], int]:
    """Members of the archive that begins at byte `start`, and where its headers end."""
    file.seek(start)
    members: list[TarMember] = []
    links: list[tuple[int, bool, str]] = []
    end = start
    try:
        with tarfile.TarFile(
            fileobj=_Headers(file), encoding="utf-8", errors="surrogateescape"
        ) as tar:
            for member in tar:
                if tar.offset <= end or member.size < 0:
                    raise tarfile.ReadError("a header with a negative size")
                end = tar.offset
                vars(tar)["members"].clear()  # a million of them would be kept for nothing
                if member.islnk() or member.issym():
                    links.append((len(members), member.issym(), clean_name(member.linkname)))
                if not (member.isdir() or member.type in _NO_FILES):
                    members.append(_member(member))
            end = tar.offset
    except _DAMAGE as error:
        if end == start == 0:
            raise DataError(
                f"tar {name} is damaged, or no tar ({_first_line(error)}); restore it"
            ) from None
        raise DataError(
            f"tar {name} is damaged or cut at byte {_place(error, end, size)}"
            f" ({_first_line(error)}); restore it"
        ) from None
    return _resolved(members, links), end


def _member(member: tarfile.TarInfo) -> TarMember:
    name = clean_name(member.name)
    if member.islnk() or member.issym():
        return TarMember(name, 0, 0, "it is a link to what the tar does not hold")
    if member.isdev():
        return TarMember(name, 0, 0, "it is a pipe or a device, not a file")
    parts: list[tuple[int, int]] | None = getattr(member, "sparse", None)
    if parts is None or [part for part in parts if part[1]] == [(0, member.size)]:
        return TarMember(name, member.offset_data, member.size)
    return TarMember(
        name, member.offset_data, 0,
        "it is a sparse member (GNU tar -S), whose bytes are not in one piece: write the tar"
        " without -S",
    )  # fmt: skip


def clean_name(name: str) -> str:
    """A name in UTF-8 without `./` and `//`; bytes that are none are shown as escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    folder, slash, base = text.rpartition("/")
    parts = [part for part in folder.split("/") if part not in ("", ".")]
    lead = "/" if folder.startswith("/") or (slash and not folder) else ""
    return lead + "/".join([*parts, base])


def _resolved(members: list[TarMember], links: list[tuple[int, bool, str]]) -> list[TarMember]:
    """Links replaced by the files they lead to."""
    targets: dict[str, str] = {}
    for at, is_symbolic, target in links:
        name = members[at].name
        folder = posixpath.dirname(name) if is_symbolic else ""
        targets[name] = posixpath.normpath(posixpath.join(folder, target))
    files = {member.name: member for member in members if member.name not in targets}
    found = list(members)
    for at, _, _ in links:
        found[at] = _follow(members[at], targets, files)
    return found


def _follow(
    link: TarMember, targets: Mapping[str, str], files: Mapping[str, TarMember]
) -> TarMember:
    name = link.name
    for _ in range(_MAX_LINKS):
        name = targets.get(name, name)
        if name in files:
            return replace(files[name], name=link.name)
    return link


def _behind_zeros(file: io.BufferedReader, start: int, end: int, size: int, name: str) -> int:
    """Where the next archive begins behind the end marker at byte `end`; `size` if none does."""
    file.seek(end)
    block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise DataError(f"tar {name} is cut at byte {size}: its end marker is missing; restore it")
    if any(block):
        raise DataError(f"tar {name} has a damaged header at byte {end}; restore it")
    at = end
    while block and not any(block):
        at += len(block)
        block = file.read(_CHUNK_BYTES)
    if block:
        at += len(block) - len(block.lstrip(b"\0"))
        at -= at % _BLOCK_BYTES
    zeros, archive_bytes = at - end, at - start
    if block and not (zeros == _END_BYTES or _fills_record(zeros, archive_bytes)):
        raise DataError(
            f"tar {name} has {zeros} zero bytes at byte {end} where data was, as an interrupted"
            " download leaves; download it again"
        )
    if not block and zeros >= _END_BYTES + _RECORD_BYTES and not _fills_record(zeros, size - start):
        raise DataError(
            f"tar {name} ends in {zeros} zero bytes from byte {end}, more than any writer adds, as"
            " an interrupted download leaves; download it again"
        )
    return at


def _fills_record(zeros: int, archive_bytes: int) -> bool:
    """Whether so many zeros end an archive of so many bytes: they fill its last record up."""
    records = [_RECORD_BYTES, *(1 << power for power in range(10, 21))]
    return zeros >= _END_BYTES and any(
        zeros < _END_BYTES + record and archive_bytes % record == 0 for record in records
    )


def _place(error: Exception, end: int, size: int) -> int:
    """The byte to name: the end of a cut file, else the last header that was one."""
    return size if any(word in str(error) for word in ("end of data", "truncated")) else end


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
