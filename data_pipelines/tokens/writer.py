"""Rows to shard files, and shard files to a published dataset."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.open import Storage
from data_pipelines.storage.outputs import Writer, claim
from data_pipelines.tokens import schema
from data_pipelines.tokens.format import (
    FORMAT_NAME,
    FORMAT_VERSION,
    JOB_JSON,
    METADATA_KEY,
    TOKENS_JSON,
    ShardMetadata,
    TokenSpec,
    canonical_json,
    job_name,
    shard_name,
    table_name,
)
from data_pipelines.tokens.latents import LatentStatistics

logger = logging.getLogger(__name__)

SHARD_TABLE_SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("first_sample", pa.int64()),
        ("num_samples", pa.int64()),
        ("num_rows", pa.int64()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("content_sha256", pa.string()),
    ]
)


@dataclass(frozen=True)
class TokenShardEntry:
    """One row of tokens.arrow."""

    name: str
    first_sample: int
    num_samples: int
    num_rows: int
    num_bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True)
class TokenRows:
    """N rows of one shard, a sample's views one after the other.

    sample_ids: int64 [N], ids in the source manifest.
    source_ids: int64 [N], whose pixels were encoded: the same, but for replaced bad samples.
    labels: int32 [N], of the image encoded, -1 where there is none.
    views: int64 [N].
    windows: uint16 [N, 4], height and width the image was resized to, top and left of the crop in
        it, in pixels (65,535 stands for that or more).
    flips: bool [N], whether the crop was then mirrored.
    tokens: int64 [N, T] or [N, T, G]; G is 0 where there are none.
    extra: further arrays [N, ...] as the spec's `extra_columns` say.
    """

    sample_ids: NDArray[np.int64]
    source_ids: NDArray[np.int64]
    labels: NDArray[np.int32]
    views: NDArray[np.int64]
    windows: NDArray[np.uint16]
    flips: NDArray[np.bool_]
    tokens: NDArray[np.int64]
    extra: Mapping[str, NDArray[np.generic]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample_ids)


def content_hash(batch: pa.RecordBatch, metadata: ShardMetadata) -> str:
    """sha256 (hex) over the values of all columns and the metadata."""
    digest = hashlib.sha256(replace(metadata, content_sha256="").to_bytes())
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        digest.update(f"\n{name} {column.type} {len(column)}\n".encode())
        if pa.types.is_boolean(column.type):
            column = column.cast(pa.uint8())
        while pa.types.is_fixed_size_list(column.type):
            column = column.flatten()
        buffer = column.buffers()[1]
        # An empty column may come without a buffer; padding behind the values does not count.
        digest.update(b"" if buffer is None else buffer.slice(0, column.nbytes))
    return digest.hexdigest()


def encode_shard(rows: TokenRows, metadata: ShardMetadata) -> bytes:
    """A shard as an Arrow IPC file; the same bytes for the same arguments.

    `metadata.content_sha256` and `metadata.replaced` are filled in here.

    Raises:
        DataError: tokens or rows that do not fit the spec.
    """
    spec = metadata.spec
    first, count = spec.shard_range(metadata.index)
    expected = np.arange(first * spec.num_views, (first + count) * spec.num_views)
    if not np.array_equal(rows.sample_ids * spec.num_views + rows.views, expected):
        raise DataError(
            f"rows of shard {metadata.index} are not views 0 to {spec.num_views - 1} of samples "
            f"{first} to {first + count - 1} in order; this is a fault of the encoding program"
        )
    columns = {
        "label": pa.array(rows.labels, pa.int32()),
        "window": pa.FixedSizeListArray.from_arrays(
            pa.array(rows.windows.reshape(-1), pa.uint16()), 4
        ),
        "flip": pa.array(rows.flips, pa.bool_()),
    }
    if spec.has_tokens:
        columns["tokens"] = _fixed_size_binary(spec.packer.pack(rows.tokens))
    columns |= _extra_columns(rows, spec)
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    others = np.flatnonzero(rows.source_ids != rows.sample_ids)
    replaced = tuple(zip(others.tolist(), rows.source_ids[others].tolist(), strict=True))
    metadata = replace(metadata, replaced=replaced)
    metadata = replace(metadata, content_sha256=content_hash(batch, metadata))
    return _ipc_file(batch.replace_schema_metadata({METADATA_KEY: metadata.to_bytes()}))


def publish_shard(storage: Storage, index: int, data: bytes) -> bool:
    """Create the shard; False if it exists already with exactly these bytes.

    Raises:
        DataError: it exists with other bytes, so its making is not the pure function it must be.
    """
    name = shard_name(index)
    if storage.put_if_absent(name, data):
        return True
    if storage.read(name) != data:
        raise DataError(
            f"{storage.url}/{name} exists with other bytes than were just made for it (another "
            "kind of machine or library version?); delete it and run again"
        )
    return False


def _holds_job(storage: Storage) -> bool:
    """Whether a folder is a token dataset, finished or not; ``job.json`` is its marker."""
    for name in (JOB_JSON, TOKENS_JSON):
        if storage.exists(name):
            try:
                found = parse_json(storage.read(name), name)
            except DataError:
                return True  # damaged: its reader says so
            return isinstance(found, dict) and str(found.get("format")).startswith(FORMAT_NAME)
    return bool(found := storage.list()) and TOKEN_WRITER.own_files(storage) == found


TOKEN_WRITER = Writer(
    "ifsq precompute",
    (
        "job.json",
        "job-[0-9][0-9][0-9][0-9].json",
        "tokens.json",
        "tokens.arrow",
        "tokens-[0-9][0-9][0-9][0-9].arrow",
        "shards/tokens-[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9].arrow",
        "quarantine.jsonl",
        # Where the metrics of the writing process are read; there before the first item.
        "metrics_endpoint*.json",
    ),
    _holds_job,
    marks=False,
    result="token dataset",
)


def pin_job(storage: Storage, spec: TokenSpec) -> None:
    """Record what a folder is being filled with; nothing happens if it says the same already.

    Raises:
        DataError: the folder was begun with another spec; names every difference.
        UserError: the folder holds something else than a token dataset.
    """
    claim(storage, TOKEN_WRITER)
    generation = len(spec.grown_from)
    if generation:
        before = _read_job(storage, job_name(generation - 1))
        refuse_differences(storage, before, spec.before_growth())
    job = {"format": f"{FORMAT_NAME}-job", "version": FORMAT_VERSION, "spec": spec.to_dict()}
    if storage.put_if_absent(job_name(generation), (canonical_json(job) + "\n").encode()):
        return
    refuse_differences(storage, _read_job(storage, job_name(generation)), spec)


def refuse_differences(storage: Storage, pinned: TokenSpec, spec: TokenSpec) -> None:
    """Raise DataError naming every difference, if there is one."""
    if differences := pinned.differences(spec):
        raise DataError(
            f"{storage.url} was begun with other settings ({'; '.join(differences)}); use those "
            "again, or write to another folder"
        )


def read_job(storage: Storage) -> TokenSpec | None:
    """The spec a folder is being filled to, growths counted; None where there is no job.

    Raises:
        DataError: the job's file is damaged or of another version.
    """
    generation = 0
    while storage.exists(job_name(generation)):
        generation += 1
    return _read_job(storage, job_name(generation - 1)) if generation else None


def _read_job(storage: Storage, name: str) -> TokenSpec:
    try:
        job = checked(schema.JOB, parse_json(storage.read(name), "the job"), "the job")
        return TokenSpec.from_dict(job["spec"])
    except UserError as error:
        raise DataError(
            f"{storage.url}/{name}: {error}; delete the folder and precompute again"
        ) from None


def publish_tokens(
    storage: Storage,
    spec: TokenSpec,
    shards: Sequence[TokenShardEntry],
    statistics: LatentStatistics | None,
    num_bad_samples: int = 0,
    notes: Mapping[str, str] | None = None,
) -> str:
    """Write the shard table, then tokens.json, after which the dataset exists.

    Args:
        storage: the dataset's folder.
        spec: of the dataset.
        shards: all of them.
        statistics: of the latents.
        num_bad_samples: images that could not be read.
        notes: further facts for readers of tokens.json.

    Returns:
        Its digest.
    """
    table = pa.RecordBatch.from_pylist(
        [asdict(shard) for shard in shards], schema=SHARD_TABLE_SCHEMA
    )
    data = _ipc_file(table)
    digest = tokens_digest(spec, shards)
    facts = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "digest": digest,
        "num_samples": sum(shard.num_samples for shard in shards),
        "num_rows": sum(shard.num_rows for shard in shards),
        "expected_rows": spec.num_rows,
        "num_shards": len(shards),
        "num_bytes": sum(shard.num_bytes for shard in shards),
        "num_bad_samples": num_bad_samples,
        "table_sha256": hashlib.sha256(data).hexdigest(),
        "spec": spec.with_statistics(statistics).to_dict(),
        **(notes or {}),
    }
    facts["sha256"] = facts_sha256(facts)
    # A growing dataset stays readable: its old table is under another name.
    storage.write(table_name(len(spec.grown_from)), data)
    storage.write(TOKENS_JSON, (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode())
    return digest


def facts_sha256(facts: Mapping[str, Any]) -> str:
    """Checksum of tokens.json: sha256 (hex) over the canonical JSON of all other fields."""
    rest = {name: value for name, value in facts.items() if name != "sha256"}
    return hashlib.sha256(canonical_json(rest).encode()).hexdigest()


def tokens_digest(spec: TokenSpec, shards: Sequence[TokenShardEntry]) -> str:
    """Identity of the contents: the spec and the contents of every shard."""
    digest = hashlib.sha256(f"{FORMAT_NAME} {FORMAT_VERSION} {spec.digest}".encode())
    for shard in shards:
        digest.update(f"\n{shard.num_rows} {shard.content_sha256}".encode())
    return digest.hexdigest()


def _extra_columns(rows: TokenRows, spec: TokenSpec) -> dict[str, pa.Array]:
    if set(rows.extra) != set(spec.extra_columns):
        raise DataError(
            f"rows have the extra columns {sorted(rows.extra)}, the spec has "
            f"{sorted(spec.extra_columns)}; give exactly those"
        )
    columns = {}
    for name, column in sorted(spec.extra_columns.items()):
        values = rows.extra[name]
        if values.dtype != np.dtype(column.dtype) or values.shape != (len(rows), *column.shape):
            raise DataError(
                f"extra column {name} is {values.dtype} {values.shape}, the spec says "
                f"{column.dtype} {(len(rows), *column.shape)}; convert it or change the spec"
            )
        flat = np.ascontiguousarray(values).reshape(len(rows), -1)
        columns[name] = _fixed_size_binary(flat.view(np.uint8))
    return columns


def _fixed_size_binary(packed: NDArray[np.uint8]) -> pa.Array:
    """Uint8 [N, width] as N binary values, without copying."""
    buffer = pa.py_buffer(np.ascontiguousarray(packed))
    return pa.Array.from_buffers(pa.binary(packed.shape[1]), len(packed), [None, buffer])


def _ipc_file(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()
