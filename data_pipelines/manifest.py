"""What a dataset of image shards consists of, readable without touching the shards.

    manifest.json           published last: a dataset without it is not finished
    manifest.arrow          one row per shard (Arrow IPC file)
    shard-000000.tar ...    WebDataset tars, here or where `shards_url` says
    index/shard-000000.arrow  one row per sample: where its bytes lie and what they are

Opening costs O(shards). A shard's index is read when one of its samples is first asked for, and
its hash is checked then, so a stale or damaged index cannot point at wrong bytes.
"""

import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError
from data_pipelines.lru import Lru
from data_pipelines.manifest_shape import KIND, MANIFEST
from data_pipelines.storage.open import Storage, open_storage

FORMAT_NAME = "ifsq-manifest"
FORMAT_VERSION = 1
MANIFEST_JSON = "manifest.json"
MANIFEST_TABLE = "manifest.arrow"
MAX_OPEN_INDICES = 256

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("label", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("crc32", pa.uint32()),
        ("format", pa.string()),
    ]
)
SHARD_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("num_samples", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("index_name", pa.string()),
        ("index_sha256", pa.string()),
        ("content_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class IndexRow:
    """One sample of a shard; `offset` and `size` locate the image's bytes in the tar."""

    key: str
    offset: int
    size: int
    label: int
    height: int
    width: int
    crc32: int
    format: str


@dataclass(frozen=True)
class ShardEntry:
    """One shard; `num_bytes` and `sha256` are of the tar, `content_sha256` of its index columns."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str
    index_name: str
    index_sha256: str
    content_sha256: str


@dataclass(frozen=True)
class ShardRows:
    """A shard's index as columns, each [num_samples of the shard]; `label` -1 means none."""

    table: pa.Table
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int32]
    height: NDArray[np.int32]
    width: NDArray[np.int32]
    crc32: NDArray[np.uint32]
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.table.num_rows

    def key(self, row: int) -> str:
        return self.table.column("key")[row].as_py()

    def format(self, row: int) -> str:
        """Image format by content: jpeg, png or webp."""
        return self.table.column("format")[row].as_py()


def content_digest(rows: Sequence[IndexRow]) -> str:
    """Hash over the values of an index, independent of how a library version lays them out."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(list(asdict(row).values()), ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def encode_table(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file: without its footer (a cut file) it refuses to open."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def encode_index(rows: Sequence[IndexRow], metadata: Mapping[str, Any]) -> bytes:
    """Index file of one shard; `metadata` is stored as JSON beside the columns."""
    table = pa.Table.from_pylist([asdict(row) for row in rows], schema=INDEX_SCHEMA)
    return encode_table(table.replace_schema_metadata({b"ifsq": json.dumps(metadata).encode()}))


def decode_index(data: pa.Buffer | bytes) -> ShardRows:
    """Columns of an index file.

    Raises:
        DataError: it is not one, or its numbers cannot be those of images in a tar.
    """
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        if not table.schema.equals(INDEX_SCHEMA):
            raise DataError(f"the columns are {table.schema.names}")
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise DataError("values are missing")
        stored = parse_json((table.schema.metadata or {}).get(b"ifsq", b"{}"), "its metadata")
    except (pa.ArrowException, OSError, MemoryError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"not the index of a shard ({reason})") from None
    columns = {
        name: table.column(name).to_numpy()
        for name in ("offset", "size", "label", "height", "width", "crc32")
    }
    least = {"offset": 0, "size": 0, "label": -1, "height": 0, "width": 0}
    for name, lowest in least.items():
        if len(columns[name]) and int(columns[name].min()) < lowest:
            raise DataError(f"not the index of a shard (a {name} of {int(columns[name].min())})")
    if not isinstance(stored, dict):
        raise DataError("not the index of a shard (its metadata is no object)")
    return ShardRows(table=table, metadata=stored, **columns)


def publish_manifest(
    storage: Storage,
    shards: Sequence[ShardEntry],
    *,
    classes: Sequence[str],
    shards_url: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write manifest.arrow, then manifest.json, after which the dataset exists.

    Args:
        classes: class names; a label is an index into them.
        shards_url: where the tars lie if not beside the manifest.
        extra: further JSON facts, such as the fingerprint of what was packed.
    """
    table = pa.Table.from_pylist([asdict(shard) for shard in shards], schema=SHARD_SCHEMA)
    data = encode_table(table)
    facts = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "kind": "images",
        "digest": manifest_digest(shards, classes),
        "num_samples": sum(shard.num_samples for shard in shards),
        "num_shards": len(shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "table_sha256": hashlib.sha256(data).hexdigest(),
        "shards_url": shards_url,
        "created_by": _versions(),
        **(extra or {}),
        "classes": list(classes),
    }
    storage.write(MANIFEST_TABLE, data)
    storage.write(MANIFEST_JSON, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())


def manifest_digest(shards: Sequence[ShardEntry], classes: Sequence[str]) -> str:
    """Identity of the contents: tar hashes, index contents and classes; not names or places."""
    digest = hashlib.sha256(json.dumps(["images", FORMAT_VERSION, list(classes)]).encode())
    for shard in shards:
        digest.update(f"\n{shard.num_samples} {shard.sha256} {shard.content_sha256}".encode())
    return digest.hexdigest()


def read_manifest_json(storage: Storage) -> dict[str, Any]:
    """The facts of manifest.json. Raises DataError if missing, damaged or of another format."""
    if not storage.exists(MANIFEST_JSON):
        raise DataError(
            f"{storage.url} holds no finished dataset ({MANIFEST_JSON} is missing); "
            "check the path, or run the packing again: it continues where it stopped"
        )
    where = f"{storage.url}/{MANIFEST_JSON}"
    try:
        facts = parse_json(storage.read(MANIFEST_JSON), "it")
        kind = checked(KIND, facts, "it")
    except DataError as error:
        raise _damaged(storage, MANIFEST_JSON, f"is not a manifest ({error})") from None
    found = (kind["format"], kind["version"], kind["kind"])
    if found != (FORMAT_NAME, FORMAT_VERSION, "images"):
        raise DataError(
            f"{where} has format {found}, expected "
            f"{(FORMAT_NAME, FORMAT_VERSION, 'images')}; use the matching version or dataset"
        )
    try:
        checked(MANIFEST, facts, "it")
    except DataError as error:
        raise _damaged(storage, MANIFEST_JSON, f"cannot be used ({error})") from None
    return facts


class ShardManifest:
    """An opened dataset: O(shards) in memory, sample indices on demand. Thread-safe."""

    def __init__(self, storage: Storage, facts: Mapping[str, Any], table: pa.Table) -> None:
        self.storage = storage
        self.facts = facts
        self.digest: str = facts["digest"]
        self.num_samples: int = facts["num_samples"]
        self.classes: list[str] = facts["classes"]
        self.shard_sizes: NDArray[np.int64] = table.column("num_samples").to_numpy()
        self._table = table
        self._ends = np.cumsum(self.shard_sizes)
        self._rows: Lru[int, ShardRows] = Lru(MAX_OPEN_INDICES)

    @classmethod
    def open(cls, url: str | Path | Storage, *, same_digest: bool = True) -> "ShardManifest":
        """Read the manifest at `url`.

        Args:
            same_digest: refuse one whose digest is not that of its shards and classes.

        Raises:
            DataError: there is none, it is unfinished, damaged, or of another format.
        """
        storage = open_storage(url) if isinstance(url, str | Path) else url
        facts = read_manifest_json(storage)
        data = storage.read(MANIFEST_TABLE)
        if hashlib.sha256(data).hexdigest() != facts["table_sha256"]:
            raise _damaged(storage, MANIFEST_TABLE, f"does not match {MANIFEST_JSON}")
        try:
            table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
            if not table.schema.equals(SHARD_SCHEMA):
                raise _damaged(storage, MANIFEST_TABLE, f"has the columns {table.schema.names}")
            table.validate(full=True)
            _check_entries(storage, table)
            manifest = cls(storage, facts, table)
        except (pa.ArrowException, OSError, MemoryError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise _damaged(storage, MANIFEST_TABLE, f"cannot be used ({reason})") from None
        counts = (facts["num_shards"], facts["num_samples"])
        if counts != (table.num_rows, int(manifest.shard_sizes.sum())):
            raise _damaged(storage, MANIFEST_TABLE, f"does not match {MANIFEST_JSON}")
        digest = manifest_digest(manifest.shards(), manifest.classes)
        if same_digest and digest != manifest.digest:
            raise _damaged(storage, MANIFEST_JSON, "has another digest than its shards and classes")
        return manifest

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardManifest.open, (self.storage.url,))

    def __repr__(self) -> str:
        return f"ShardManifest({self.storage.url}, {self.num_samples} samples, {self.digest[:12]})"

    @property
    def num_shards(self) -> int:
        return self._table.num_rows

    def summary(self) -> dict[str, Any]:
        """What a user wants to know of the dataset, in words and numbers."""
        return {
            "kind": "images",
            "url": self.storage.url,
            "digest": self.digest,
            "samples": self.num_samples,
            "classes": len(self.classes),
            "shards": self.num_shards,
            "bytes": self.facts["num_bytes"],
            "bad samples": self.facts.get("num_bad_samples", 0),
            "shards lie in": self.shards_storage.url,
        }

    @functools.cached_property
    def shards_storage(self) -> Storage:
        """Where the tars lie: beside the manifest unless they were indexed in place elsewhere."""
        url = self.facts.get("shards_url")
        return open_storage(url) if url else self.storage

    def shard(self, shard: int) -> ShardEntry:
        return ShardEntry(**self._table.slice(shard, 1).to_pylist()[0])

    def shards(self) -> list[ShardEntry]:
        return [ShardEntry(**row) for row in self._table.to_pylist()]

    def first_id(self, shard: int) -> int:
        """Sample id of the shard's first sample; ids count through the shards in order."""
        return int(self._ends[shard] - self.shard_sizes[shard])

    def locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Sample ids [B] to (shard, row within the shard), each int64 [B]."""
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.num_samples):
            raise DataError(
                f"sample ids from {ids.min()} to {ids.max()} were asked of {self.storage.url}, "
                f"which has 0 to {self.num_samples - 1}; use the plan made for this dataset"
            )
        shard = np.searchsorted(self._ends, ids, side="right")
        return shard, ids - (self._ends[shard] - self.shard_sizes[shard])

    def rows(self, shard: int) -> ShardRows:
        """Index of a shard. Raises DataError if it is missing or not the one recorded."""
        return self._rows.get(shard, lambda: self._read_rows(self.shard(shard)))

    def _read_rows(self, entry: ShardEntry) -> ShardRows:
        # Into memory, a few dozen bytes a sample: an index that is cut while it is used, as a map
        # of it could be, would end the process.
        data = self.storage.read(entry.index_name)
        if hashlib.sha256(data).hexdigest() != entry.index_sha256:
            raise _damaged(self.storage, entry.index_name, "is not the index recorded")
        try:
            rows = decode_index(data)
        except DataError as error:
            raise _damaged(self.storage, entry.index_name, f"is {error}") from None
        if len(rows) != entry.num_samples:
            raise _damaged(self.storage, entry.index_name, "has another number of samples")
        if self.classes and len(rows) and int(rows.label.max()) >= len(self.classes):
            what = f"has the label {int(rows.label.max())}, there are {len(self.classes)} classes"
            raise _damaged(self.storage, entry.index_name, what)
        # No addition: two large numbers could wrap around.
        beyond = rows.size > entry.num_bytes - np.minimum(rows.offset, entry.num_bytes)
        if beyond.any():
            raise _damaged(self.storage, entry.index_name, "points beyond the end of its shard")
        return rows


def _check_entries(storage: Storage, table: pa.Table) -> None:
    """Raises DataError where a row of the shard table is none."""
    if any(column.null_count for column in table.columns):
        raise _damaged(storage, MANIFEST_TABLE, "has missing values")
    for name in ("num_samples", "num_bytes"):
        values = table.column(name).to_numpy()
        if len(values) and not 0 <= int(values.min()) <= int(values.max()) < 1 << 48:
            raise _damaged(storage, MANIFEST_TABLE, f"has a {name} of {int(values.min())}")
    for column in ("name", "index_name"):
        for path in table.column(column).to_pylist():
            if path.startswith("/") or ".." in path.split("/") or "\0" in path:
                raise _damaged(storage, MANIFEST_TABLE, f"names a file outside: {path[:80]!r}")


def _damaged(storage: Storage, path: str, what: str) -> DataError:
    return DataError(f"{storage.url}/{path} {what}; restore the dataset's files or build it again")


def _versions() -> dict[str, str]:
    packages = ("ifsq-train", "webdataset", "pyarrow", "numpy")
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "unknown"
    return found
