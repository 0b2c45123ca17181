"""The shard table of a token dataset: read, and held against the spec and tokens.json."""

import hashlib
import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.errors import DataError
from data_pipelines.storage.open import Storage
from data_pipelines.tokens.format import (
    METADATA_KEY,
    ShardMetadata,
    TokenSpec,
    shard_name,
    table_name,
)
from data_pipelines.tokens.latents import LatentStatistics, LatentSums
from data_pipelines.tokens.tokens_json import does_not_match
from data_pipelines.tokens.writer import SHARD_TABLE_SCHEMA, TokenShardEntry, tokens_digest

_READERS = 16
_SAME = 1e-9
"""Largest relative difference of statistics added up again."""


def read_table(storage: Storage, facts: Mapping[str, Any], spec: TokenSpec) -> pa.Table:
    """The table of `TokenShardEntry`, one row per shard in order.

    Raises:
        DataError: missing, or not what tokens.json and the spec say.
    """
    data = storage.read(table_name(len(spec.grown_from)))
    if hashlib.sha256(data).hexdigest() != facts["table_sha256"]:
        raise does_not_match(storage)
    try:
        table = pa.ipc.open_file(pa.BufferReader(data)).read_all()
        if not table.schema.equals(SHARD_TABLE_SCHEMA):
            raise does_not_match(storage)
        table.validate(full=True)
        if any(column.null_count for column in table.columns):
            raise does_not_match(storage)
        entries = [TokenShardEntry(**row) for row in table.to_pylist()]
    except (pa.ArrowException, OSError, MemoryError, ValueError):
        raise does_not_match(storage) from None
    counts = (len(entries), sum(e.num_samples for e in entries), sum(e.num_rows for e in entries))
    if counts != (facts["num_shards"], facts["num_samples"], facts["num_rows"]):
        raise does_not_match(storage)
    if len(entries) > spec.num_shards or tokens_digest(spec, entries) != facts["digest"]:
        raise does_not_match(storage)
    for index, entry in enumerate(entries):
        first, count = spec.shard_range(index)
        rows = count * spec.num_views
        expected = (shard_name(index), first, count, rows)
        found = (entry.name, entry.first_sample, entry.num_samples, entry.num_rows)
        if found != expected or entry.num_bytes < 1:
            raise does_not_match(storage)
    return table


def check_statistics(storage: Storage, spec: TokenSpec, table: pa.Table) -> None:
    """Add the shards' shares of the latent statistics up again.

    For datasets whose tokens.json has no checksum of its own: nothing else says whether the
    numbers that latents are normalised with are those that were written.

    Raises:
        DataError: the sum is another one, or a shard cannot be read.
    """
    names = table.column("name").to_pylist()
    with ThreadPoolExecutor(_READERS, "metadata") as pool:
        parts = list(pool.map(lambda name: _latent_sums(storage, name), names))
    stored = spec.latent_statistics
    assert stored is not None
    again = LatentSums.combine(parts)
    if again is None or again.count != stored.count or not _same(again, stored):
        raise DataError(
            f"{storage.url}: the latent statistics in tokens.json are not those of the shards; run "
            "ifsq data verify to see which is damaged"
        )


def _same(left: LatentStatistics, right: LatentStatistics) -> bool:
    pairs = ((left.mean, right.mean), (left.std, right.std))
    return all(len(a) == len(b) and np.allclose(a, b, rtol=_SAME, atol=1e-12) for a, b in pairs)


def _latent_sums(storage: Storage, name: str) -> LatentSums:
    """Of one shard, reading only the end of its file, where the schema is."""
    try:
        with pa.PythonFile(_Ranges(storage, name), "r") as file:
            metadata = (pa.ipc.open_file(file).schema.metadata or {}).get(METADATA_KEY, b"")
        return ShardMetadata.from_bytes(metadata).latent_sums
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{storage.url}/{name} cannot be read ({reason}); restore it") from None


class _Ranges(io.RawIOBase):
    """An object of a storage as a file, read by ranges."""

    def __init__(self, storage: Storage, name: str) -> None:
        self._storage, self._name, self._at = storage, name, 0
        self._size = storage.size(name)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        size = left if size is None or size < 0 else min(size, left)
        data = self._storage.read_range(self._name, self._at, size) if size else b""
        self._at += size
        return data
