"""Check that a dataset on disk or in storage still is what its manifest says."""

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.images.packing.tar import scan_tar
from data_pipelines.manifest import ShardEntry, ShardManifest, ShardRows, manifest_digest
from data_pipelines.storage.open import as_local_file


@dataclass(frozen=True)
class Problem:
    """Something damaged: a shard, or (with `key`) one sample of it."""

    shard: str
    key: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.shard}{f' sample {self.key}' if self.key is not None else ''}: {self.what}"


@dataclass
class VerifyReport:
    """Outcome of `verify_dataset`; `full` tells whether the bytes of the shards were read."""

    url: str
    full: bool
    num_shards: int
    num_samples: int
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        head = f"{self.url}: {self.num_samples} samples in {self.num_shards} shards, "
        if self.ok:
            return head + ("every byte is as recorded" if self.full else "all files are there")
        return "\n".join([head + f"{len(self.problems)} problems", *map(str, self.problems)])


def verify_dataset(url: str | Path, full: bool = True) -> VerifyReport:
    """Check every shard and index; names every damaged shard and sample.

    Args:
        full: also read all bytes: sha256 of the tars, tar structure, crc32 of every image.
            Otherwise only presence, sizes and indices are checked.

    Raises:
        DataError: there is no readable manifest; everything else ends up in the report.
    """
    manifest = ShardManifest.open(url, same_digest=False)
    shards = manifest.shards()
    report = VerifyReport(manifest.storage.url, full, len(shards), manifest.num_samples)
    if manifest_digest(shards, manifest.classes) != manifest.digest:
        report.problems.append(
            Problem("manifest.json", None, "its digest is not that of the shards it lists")
        )
    for number, entry in enumerate(shards):
        report.problems.extend(_check_shard(manifest, number, entry, full))
    return report


def _check_shard(
    manifest: ShardManifest, number: int, entry: ShardEntry, full: bool
) -> Iterator[Problem]:
    rows: ShardRows | None = None
    try:
        rows = manifest.rows(number)
    except DataError as error:
        yield Problem(entry.index_name, None, str(error))
    storage = manifest.shards_storage
    if not storage.exists(entry.name):
        yield Problem(entry.name, None, "is missing")
        return
    size = storage.size(entry.name)
    if size != entry.num_bytes:
        yield Problem(entry.name, None, f"has {size} bytes, recorded are {entry.num_bytes}")
    if full:
        with as_local_file(storage, entry.name) as path:
            yield from _check_bytes(path, entry, rows)


def _check_bytes(path: Path, entry: ShardEntry, rows: ShardRows | None) -> Iterator[Problem]:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        yield Problem(entry.name, None, "its sha256 is not the one recorded")
    places: set[tuple[int, int]] | None = None
    try:
        places = {(member.offset, member.size) for member in scan_tar(path, entry.name)}
    except DataError as error:
        yield Problem(entry.name, None, str(error))
    for row in range(len(rows) if rows is not None else 0):
        assert rows is not None
        offset, size = int(rows.offset[row]), int(rows.size[row])
        image = data[offset : offset + size]
        if len(image) != size:
            yield Problem(entry.name, rows.key(row), "lies beyond the end of the tar")
        elif zlib.crc32(image) != int(rows.crc32[row]):
            yield Problem(entry.name, rows.key(row), "its crc32 is not the one recorded")
        elif places is not None and (offset, size) not in places:
            yield Problem(entry.name, rows.key(row), "the index points beside the tar's members")
