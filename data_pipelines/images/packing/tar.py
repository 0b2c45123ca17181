"""Where the members of a tar file lie, with the damage that `tarfile` keeps silent about."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import DataError

_BLOCK_BYTES = 512


@dataclass(frozen=True)
class TarMember:
    """A file in a tar; its bytes are `[offset, offset + size)` of the tar."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class TarSample:
    """Consecutive members with one WebDataset key: the path up to the first dot of the name."""

    key: str
    members: dict[str, TarMember]
    """By extension, lower case: everything after that dot."""
    repeated: list[str] = field(default_factory=list)
    """Extensions that come more than once; `members` has the last."""

    def ending_in(self, extension: str) -> list[TarMember]:
        """Members called `.extension`, or else those called `.anything.extension`."""
        if extension in self.members:
            return [self.members[extension]]
        return [m for name, m in self.members.items() if name.endswith(f".{extension}")]


def scan_tar(path: Path, name: str) -> list[TarMember]:
    """All regular files of a tar, reading only headers. `name` is used in messages.

    Raises:
        DataError: the tar is cut, a header is damaged, or it is no tar; says at which byte.
            (`tarfile` takes a damaged header for the end and loses the rest silently.)
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [
                TarMember(member.name, member.offset_data, member.size)
                for member in tar
                if member.isreg()
            ]
            end = tar.offset
    except tarfile.ReadError as error:
        raise DataError(
            f"tar {name} is damaged or cut at byte {path.stat().st_size} ({error}); restore it"
        ) from None
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK_BYTES)
    if len(block) < _BLOCK_BYTES:
        raise DataError(
            f"tar {name} is cut at byte {path.stat().st_size}: its end marker is missing; "
            "restore it"
        )
    if any(block):
        raise DataError(f"tar {name} has a damaged header at byte {end}; restore it")
    return members


def group_samples(members: list[TarMember]) -> Iterator[TarSample]:
    """Members to WebDataset samples; members without an extension are skipped."""
    current: TarSample | None = None
    for member in members:
        key, extension = split_name(member.name)
        if not extension:
            continue
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = TarSample(key, {})
        if extension in current.members:
            current.repeated.append(extension)
        current.members[extension] = member
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str]:
    """`a.b/c.d.JPG` to (`a.b/c`, `d.jpg`), as WebDataset does; no dot gives an empty extension."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem else (name, "")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file of any size."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
