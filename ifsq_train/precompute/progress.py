"""Which items of a precompute are left, how far it is, and when the dataset is finished.

Knows no encoder: whoever makes items (a process, a pool of Ray actors) asks `PrecomputeRun` what
to make and tells it what was made.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from data_pipelines.bad_samples import BadSample
from data_pipelines.errors import DataError, UserError
from data_pipelines.manifest import ShardManifest, manifest_digest
from data_pipelines.storage.open import Storage
from data_pipelines.tokens.format import (
    SHARD_FOLDER,
    TOKENS_JSON,
    ShardMetadata,
    TokenSpec,
    shard_name,
)
from data_pipelines.tokens.latents import LatentSums
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.shard import TokenShard, decode_shard
from data_pipelines.tokens.tokens_json import read_tokens_json
from data_pipelines.tokens.verify import RowCount, count_rows, verify_tokens
from data_pipelines.tokens.writer import (
    TokenShardEntry,
    pin_job,
    publish_tokens,
    read_job,
    refuse_differences,
)
from data_pipelines.work_items import WorkItem

logger = logging.getLogger(__name__)

QUARANTINE = "quarantine.jsonl"
_MAX_ROUNDS = 4
_CHECK_THREADS = 8

STAGES: tuple[str, ...] = ("items", "pixels", "encode", "publish")
"""What an encoder does: wait for work, for pixels, for the device, for the storage."""

OnItem = Callable[[int, int, int], None]
"""Called after every item with (items done, items of the job, rows done), earlier runs counted."""


@dataclass(frozen=True)
class ItemResult:
    """An item is published."""

    item: WorkItem
    rows: int
    bad_samples: tuple[BadSample, ...]
    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds its encoder spent per stage since the item before; see `STAGES`."""


@dataclass(frozen=True)
class PrecomputeReport:
    """A finished token dataset and what this run had to do for it."""

    output: str
    digest: str
    rows: int
    expected_rows: int
    missing_rows: int
    duplicate_rows: int
    num_bad_samples: int
    items_done: int
    """Made by this run."""
    items_skipped: int
    """There already when it began."""
    seconds: float
    actor_restarts: int = 0

    def __str__(self) -> str:
        made = "complete already" if not self.items_done else f"{self.items_done} shards made"
        return (
            f"{self.output}: {self.rows} rows of {self.expected_rows}, {self.missing_rows} missing,"
            f" {self.duplicate_rows} duplicate; {made}, {self.items_skipped} were there"
        )


def plan_items(spec: TokenSpec) -> list[WorkItem]:
    """All items of a job, in order of sample ids; the last, and the last before a growth, may be
    smaller."""
    return [WorkItem(index, *spec.shard_range(index)) for index in range(spec.num_shards)]


def pending_items(storage: Storage, items: list[WorkItem]) -> list[WorkItem]:
    """The items whose shards are not there yet."""
    present = set(storage.list(SHARD_FOLDER))
    return [item for item in items if shard_name(item.index) not in present]


def with_growth(storage: Storage, spec: TokenSpec, manifest: ShardManifest) -> TokenSpec:
    """The spec that continues what the folder holds, where the source has grown since.

    A source has grown if it begins with all shards it had; only what came after is then encoded.

    Args:
        spec: of the job, as if nothing was there.
        manifest: of its source.

    Raises:
        DataError: the dataset of the source as it was is not finished.
    """
    pinned = read_job(storage)
    if pinned is None:
        return spec
    if pinned.source_digest == spec.source_digest:
        return replace(spec, grown_from=pinned.grown_from)
    if not _begins_with(manifest, pinned.num_samples, pinned.source_digest):
        return spec  # another source; what differs is said where the job is compared
    finished = storage.exists(TOKENS_JSON) and read_tokens_json(storage)["spec"]["source_digest"]
    if finished != pinned.source_digest:
        raise DataError(
            f"{storage.url} is unfinished and its source has grown meanwhile; finish it with the"
            " source as it was, or write to another folder"
        )
    before = (pinned.num_samples, pinned.source_digest)
    return replace(spec, grown_from=(*pinned.grown_from, before))


def _begins_with(manifest: ShardManifest, num_samples: int, digest: str) -> bool:
    """Whether the first shards of a source are, all together, the source of that digest."""
    if not isinstance(manifest, ShardManifest):
        return manifest.digest == digest
    ends = np.cumsum(manifest.shard_sizes)
    count = int(np.searchsorted(ends, num_samples)) + 1
    if count > len(ends) or ends[count - 1] != num_samples:
        return False
    shards = [manifest.shard(index) for index in range(count)]
    return manifest_digest(shards, manifest.classes) == digest


def published_report(storage: Storage, spec: TokenSpec, decoder: str) -> PrecomputeReport | None:
    """The report of a dataset that is finished already; None if there is something to do.

    Files are checked for presence and size; `verify_tokens` reads them.

    Args:
        spec: of the job. On what device a finished dataset was made does not matter.
        decoder: as the recipe names it; `auto` accepts what was used.

    Raises:
        UserError: the folder was begun with another spec; names every difference.
    """
    began = time.perf_counter()
    pinned = read_job(storage)
    if pinned is None:
        return None
    accepted = spec
    if pinned.numerics.partition("/")[2] == spec.numerics.partition("/")[2]:
        accepted = replace(spec, numerics=pinned.numerics)
    if decoder == "auto" or pinned.decoder.startswith(decoder):
        accepted = replace(accepted, decoder=pinned.decoder)
    if len(accepted.grown_from) > len(pinned.grown_from):
        refuse_differences(storage, pinned, accepted.before_growth())
        return None
    refuse_differences(storage, pinned, accepted)
    if not storage.exists(TOKENS_JSON):
        return None
    try:
        dataset, report = TokenDataset.open(storage), verify_tokens(storage, full=False)
    except DataError:
        return None  # a damaged manifest: it is written anew
    if not report.ok or dataset.spec.digest != accepted.digest:
        return None
    return PrecomputeReport(
        output=storage.url,
        digest=dataset.digest,
        rows=report.rows,
        expected_rows=report.expected_rows,
        missing_rows=report.missing_rows,
        duplicate_rows=report.duplicate_rows,
        num_bad_samples=int(dataset.facts["num_bad_samples"]),
        items_done=0,
        items_skipped=dataset.num_shards,
        seconds=time.perf_counter() - began,
    )


@dataclass
class PrecomputeRun:
    """One attempt at finishing a job, whoever makes the items.

    Args:
        storage: the output folder.
        spec: what is made; recorded in the folder, or compared with what is recorded there.
        max_bad_samples: how many different bad samples the whole dataset may have.
        on_item: called after every item.
        check: reads all shards back at the end, in the order of the items.

    Raises:
        UserError: the output folder was begun with another spec; names every difference.
    """

    storage: Storage
    spec: TokenSpec
    max_bad_samples: int
    on_item: OnItem | None = None
    check: CheckShards | None = None
    """Reads shards back; None does it in threads of this process."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Further facts for readers of the finished dataset."""
    _items: list[WorkItem] = field(init=False)
    _bad: dict[tuple[str, str], BadSample] = field(default_factory=dict)
    _checked: list[CheckedShard] = field(default_factory=list)
    _items_left: int = 0
    _rows_left: int = 0
    _items_made: int = 0
    _items_skipped: int | None = None
    _began: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        pin_job(self.storage, self.spec)
        self.storage.delete_stale_temporaries()
        self._items = plan_items(self.spec)

    @property
    def rows_done(self) -> int:
        """Rows that are there, those of earlier runs counted."""
        return self.spec.num_rows - self._rows_left

    def rounds(self) -> Iterator[list[WorkItem]]:
        """Lists of items to make, until every shard is there and was read back.

        Shards found damaged on reading back are deleted and made again.

        Raises:
            DataError: shards keep being lost or damaged, or one is of another job.
        """
        for _ in range(_MAX_ROUNDS):
            pending = pending_items(self.storage, self._items)
            if not pending:
                check = self.check or check_shards
                self._checked = check(self.storage, self.spec, self._items)
                if not self._delete_damaged():
                    return
                pending = pending_items(self.storage, self._items)
            if self._items_skipped is None:
                self._items_skipped = len(self._items) - len(pending)
            self._items_left = len(pending)
            self._rows_left = sum(item.num_samples for item in pending) * self.spec.num_views
            yield pending
        raise DataError(
            f"{self.storage.url}: shards are still missing or damaged after {_MAX_ROUNDS} rounds; "
            "check the storage and its free space, then run again"
        )

    def done(self, result: ItemResult) -> None:
        """Count an item that was made.

        Raises:
            DataError: there are now more bad samples than allowed.
        """
        self._items_left -= 1
        self._rows_left -= result.rows
        self._items_made += 1
        self._count_bad(result.bad_samples)
        if self.on_item is not None:
            total = len(self._items)
            self.on_item(total - self._items_left, total, self.rows_done)

    def finish(self, actor_restarts: int = 0) -> PrecomputeReport:
        """Publish the manifest, after `rounds` has come to its end.

        Raises:
            DataError: there are more bad samples than allowed.
        """
        assert self._checked, "finish before the rounds ended"
        for shard in self._checked:
            self._count_bad(shard.metadata.bad_samples)
        self._write_quarantine()
        statistics = LatentSums.combine([shard.metadata.latent_sums for shard in self._checked])
        entries = [shard.entry for shard in self._checked]
        digest = publish_tokens(
            self.storage, self.spec, entries, statistics, len(self._bad), self.notes
        )
        count = sum((shard.count for shard in self._checked), RowCount())
        skipped = len(self._items) if self._items_skipped is None else self._items_skipped
        return PrecomputeReport(
            output=self.storage.url,
            digest=digest,
            rows=count.rows,
            expected_rows=self.spec.num_rows,
            missing_rows=count.missing,
            duplicate_rows=count.duplicate,
            num_bad_samples=len(self._bad),
            items_done=self._items_made,
            items_skipped=skipped,
            seconds=time.perf_counter() - self._began,
            actor_restarts=actor_restarts,
        )

    def _delete_damaged(self) -> bool:
        damaged = [shard for shard in self._checked if shard.fault is not None]
        for shard in damaged:
            logger.warning("%s; it is deleted and made again", shard.fault)
            self.storage.delete(shard.entry.name)
        return bool(damaged)

    def _count_bad(self, found: tuple[BadSample, ...]) -> None:
        self._bad.update({(bad.shard, bad.key): bad for bad in found})
        if len(self._bad) > self.max_bad_samples:
            self._write_quarantine()
            last = next(reversed(self._bad.values()))
            raise DataError(
                f"{len(self._bad)} bad samples are more than max_bad_samples="
                f"{self.max_bad_samples}; one is {last.key} in {last.shard}: {last.reason}; all "
                f"are listed in {self.storage.url}/{QUARANTINE}; repair them and pack again, or "
                "raise max_bad_samples and run again"
            )

    def _write_quarantine(self) -> None:
        if self._bad:
            ordered = [self._bad[key] for key in sorted(self._bad)]
            lines = "".join(json.dumps(asdict(bad)) + "\n" for bad in ordered)
            self.storage.write(QUARANTINE, lines.encode())


# ---------------------------------------------------------------- reading shards back


@dataclass(frozen=True)
class CheckedShard:
    """A shard as read back; with a `fault`, only `entry.name` means anything."""

    entry: TokenShardEntry
    metadata: ShardMetadata
    count: RowCount
    fault: str | None = None


CheckShards = Callable[[Storage, TokenSpec, list[WorkItem]], list[CheckedShard]]


def check_shards(storage: Storage, spec: TokenSpec, items: list[WorkItem]) -> list[CheckedShard]:
    """Read the shards of items back, all bytes of them.

    Raises:
        UserError: one is of another job.
    """
    with ThreadPoolExecutor(_CHECK_THREADS, "check") as pool:
        return list(pool.map(lambda item: _check_shard(storage, spec, item), items))


def _check_shard(storage: Storage, spec: TokenSpec, item: WorkItem) -> CheckedShard:
    name, rows = shard_name(item.index), item.num_samples * spec.num_views
    where = f"{storage.url}/{name}"
    data = storage.read(name)
    sha256 = hashlib.sha256(data).hexdigest()
    entry = TokenShardEntry(name, item.first_sample, item.num_samples, rows, len(data), sha256, "")
    try:
        shard = decode_shard(data, where)
    except DataError as error:
        unknown = ShardMetadata(spec, item.index, LatentSums(0, (), ()), ())
        return CheckedShard(entry, unknown, RowCount(), str(error))
    _refuse_foreign(shard, spec, item, where)
    metadata, count = shard.metadata, count_rows(spec, item.index, shard)
    fault = shard.damage() or (None if count == RowCount(rows) else f"has other rows: {count}")
    entry = replace(entry, content_sha256=metadata.content_sha256)
    return CheckedShard(entry, metadata, count, fault and f"{where}: {fault}")


def _refuse_foreign(shard: TokenShard, spec: TokenSpec, item: WorkItem, where: str) -> None:
    """Somebody else's work is not deleted, unlike a damaged shard."""
    found = shard.metadata
    if differences := found.spec.differences(spec.of_shard(item.index)):
        raise UserError(
            f"{where} is of another job ({'; '.join(differences)}); write to another folder"
        )
    if found.index != item.index:
        raise UserError(
            f"{where} is shard {found.index} under another name; move it back or delete it"
        )
