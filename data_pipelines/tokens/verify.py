"""Check that a token dataset still is what its manifest says, row by row."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.storage.open import Storage
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.shard import TokenShard, decode_shard
from data_pipelines.tokens.writer import TokenShardEntry, tokens_digest


@dataclass(frozen=True)
class RowCount:
    """Rows of one or more shards against the (sample, view) pairs they should hold, each once."""

    rows: int = 0
    missing: int = 0
    duplicate: int = 0
    """Rows beyond the first of a pair, and rows that belong to no pair of their shard."""

    def __add__(self, other: "RowCount") -> "RowCount":
        return RowCount(
            self.rows + other.rows,
            self.missing + other.missing,
            self.duplicate + other.duplicate,
        )


@dataclass
class TokenReport:
    """Outcome of `verify_tokens`; `full` tells whether the bytes of the shards were read."""

    url: str
    full: bool
    num_shards: int
    expected_rows: int
    count: RowCount = RowCount()
    damaged: list[str] = field(default_factory=list)
    """One line per fault, naming the shard."""

    @property
    def rows(self) -> int:
        return self.count.rows

    @property
    def missing_rows(self) -> int:
        return self.count.missing

    @property
    def duplicate_rows(self) -> int:
        return self.count.duplicate

    @property
    def ok(self) -> bool:
        return not self.damaged and self.missing_rows == 0 and self.duplicate_rows == 0

    def __str__(self) -> str:
        head = (
            f"{self.url}: {self.rows} rows of {self.expected_rows} in {self.num_shards} shards, "
            f"{self.missing_rows} missing, {self.duplicate_rows} duplicate"
        )
        if self.damaged:
            return "\n".join([f"{head}, {len(self.damaged)} faults", *self.damaged])
        return f"{head}; {'every byte is as recorded' if self.full else 'all files are there'}"


def verify_tokens(url: str | Path | Storage, full: bool = True) -> TokenReport:
    """Check every shard of a finished dataset.

    Args:
        full: read all bytes: sha256, structure, and every (sample, view) exactly once. Otherwise
            presence and size only, and rows are counted as the manifest says.

    Raises:
        DataError: there is no readable manifest; everything else ends up in the report.
    """
    dataset = TokenDataset.open(url, add_up=False)
    spec, entries = dataset.spec, [dataset.entry(i) for i in range(dataset.num_shards)]
    report = TokenReport(dataset.storage.url, full, len(entries), spec.num_rows)
    if len(entries) != spec.num_shards:
        report.damaged.append(f"the manifest has {len(entries)} shards of {spec.num_shards}")
        absent = (expected_rows(spec, i) for i in range(len(entries), spec.num_shards))
        report.count += RowCount(missing=sum(absent))
    if tokens_digest(spec, entries) != dataset.digest:
        report.damaged.append("tokens.json: its digest is not that of the shards it lists")
    for index, entry in enumerate(entries):
        count, faults = _check_shard(dataset.storage, spec, index, entry, full)
        report.count += count
        report.damaged.extend(f"{entry.name}: {fault}" for fault in faults)
    return report


def expected_rows(spec: TokenSpec, index: int) -> int:
    """Rows shard `index` should have."""
    return spec.shard_range(index)[1] * spec.num_views


def count_rows(spec: TokenSpec, index: int, shard: TokenShard) -> RowCount:
    """How the rows of a shard compare with the samples and views it should hold."""
    first, samples = spec.shard_range(index)
    pairs = (shard.sample_ids - first) * spec.num_views + shard.views
    in_place = pairs[
        (shard.sample_ids >= first)
        & (shard.sample_ids < first + samples)
        & (shard.views >= 0)
        & (shard.views < spec.num_views)
    ]
    distinct = len(np.unique(in_place))
    wanted = samples * spec.num_views
    return RowCount(shard.num_rows, wanted - distinct, shard.num_rows - distinct)


def _check_shard(
    storage: Storage, spec: TokenSpec, index: int, entry: TokenShardEntry, full: bool
) -> tuple[RowCount, Iterable[str]]:
    wanted = expected_rows(spec, index)
    if not storage.exists(entry.name):
        return RowCount(missing=wanted), ["is missing"]
    size = storage.size(entry.name)
    if not full and size == entry.num_bytes:
        return RowCount(entry.num_rows, wanted - entry.num_rows), []
    if not full or size > entry.num_bytes:  # nothing to read for: it may have any size
        return RowCount(missing=wanted), [f"has {size} bytes, recorded are {entry.num_bytes}"]
    data = storage.read(entry.name)
    faults: list[str] = []
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        faults.append(f"its sha256 is not the one recorded ({len(data)} bytes)")
    try:
        shard = decode_shard(data, entry.name)
    except DataError as error:
        return RowCount(missing=wanted), [*faults, str(error)]
    if shard.metadata.spec.digest != spec.of_shard(index).digest or shard.metadata.index != index:
        faults.append("is a shard of another dataset or place")
    return count_rows(spec, index, shard), faults
