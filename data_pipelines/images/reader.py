"""Sample ids to encoded image bytes, straight out of the tars."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.lru import Lru
from data_pipelines.manifest import ShardManifest
from data_pipelines.storage.mapped import MappedFile, settled

MAX_OPEN_SHARDS = 256
MAX_GAP_BYTES = 256 << 10
"""Ranges closer than this are fetched in one request: cheaper than a second round trip."""
MAX_REQUEST_BYTES = 16 << 20
CONCURRENT_REQUESTS = 16
_NOTHING = memoryview(b"")


@dataclass(frozen=True)
class EncodedSample:
    """An image as stored. `data` may point into a memory map; sizes in pixels; label -1 is none."""

    id: int
    key: str
    shard: str
    label: int
    data: memoryview
    height: int
    width: int


@dataclass(frozen=True)
class EncodedBatch(Sequence[EncodedSample]):
    """B images as stored, column by column; an item is made into an EncodedSample when asked for.

    At a few microseconds a sample, Python objects are what reading costs; so there are none but
    the views of the bytes.

    Attributes:
        ids: int64 [B], as requested.
        data: encoded bytes, often views into memory maps.
        labels: int32 [B], -1 where there is none.
        heights, widths: int32 [B], in pixels, as indexed.
    """

    ids: NDArray[np.int64]
    data: list[memoryview]
    labels: NDArray[np.int32]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]
    _manifest: ShardManifest
    _shards: NDArray[np.int64]
    _rows: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.data)

    @overload
    def __getitem__(self, index: int) -> EncodedSample: ...

    @overload
    def __getitem__(self, index: slice) -> list[EncodedSample]: ...

    def __getitem__(self, index: int | slice) -> EncodedSample | list[EncodedSample]:
        if isinstance(index, slice):
            return [self[at] for at in range(*index.indices(len(self)))]
        return EncodedSample(
            int(self.ids[index]), self.key(index), self.shard(index), int(self.labels[index]),
            self.data[index], int(self.heights[index]), int(self.widths[index]),
        )  # fmt: skip

    def key(self, position: int) -> str:
        """WebDataset key of a sample."""
        return self._manifest.rows(int(self._shards[position])).key(int(self._rows[position]))

    def changed(self) -> dict[int, str]:
        """Positions of samples whose bytes are not those indexed, with what is wrong."""
        found = {}
        for position, data in enumerate(self.data):
            rows = self._manifest.rows(int(self._shards[position]))
            expected = int(rows.crc32[self._rows[position]])
            actual = zlib.crc32(settled(data))
            if actual != expected:
                found[position] = (
                    f"has crc32 {actual:08x}, the index says {expected:08x}; its bytes changed"
                )
        return found

    def shard(self, position: int) -> str:
        """Name of the tar a sample is in."""
        return self._manifest.shard(int(self._shards[position])).name


class ImageReader:
    """Reads samples of a dataset by id. Local tars are memory-mapped, others read by ranges.

    Args:
        verify: compare every sample's crc32 with the index; a difference raises DataError
            naming the sample.
    """

    def __init__(self, manifest: ShardManifest, *, verify: bool = False) -> None:
        self.manifest = manifest
        self.verify = verify
        self._maps: Lru[int, MappedFile] = Lru(MAX_OPEN_SHARDS)
        # Its threads start with the first request.
        self._pool = ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="ranges")

    def read(self, ids: NDArray[np.int64]) -> EncodedBatch:
        """The samples, in the order of `ids`.

        Raises:
            DataError: an id outside the dataset, a missing or changed shard or index.
        """
        ids = np.asarray(ids, dtype=np.int64)
        shards, rows = self.manifest.locate(ids)
        columns = {name: np.empty(len(ids), np.int32) for name in ("label", "height", "width")}
        data: list[memoryview] = [_NOTHING] * len(ids)
        remote: list[RangeGroup] = []
        for shard, at in _by_shard(shards):
            index, wanted = self.manifest.rows(shard), rows[at]
            for name, column in columns.items():
                column[at] = getattr(index, name)[wanted]
            starts, sizes = index.offset[wanted], index.size[wanted]
            if self._is_local:
                file = self._maps.get(shard, functools.partial(self._map, shard))
                file.check()
                mapped = file.data
                ends = (starts + sizes).tolist()
                for position, start, end in zip(at.tolist(), starts.tolist(), ends, strict=True):
                    data[position] = mapped[start:end]
            else:
                remote.extend(coalesce(shard, at, starts, sizes))
        if remote:
            self._read_remote(remote, data)
        batch = EncodedBatch(
            ids, data, columns["label"], columns["height"], columns["width"],
            self.manifest, shards, rows,
        )  # fmt: skip
        if self.verify and (changed := batch.changed()):
            position, what = next(iter(changed.items()))
            raise DataError(
                f"sample {batch.key(position)} (id {ids[position]}) of {batch.shard(position)}"
                f" {what}: restore the shard"
            )
        return batch

    @functools.cached_property
    def _is_local(self) -> bool:
        return self.manifest.shards_storage.local_path("any") is not None

    def _map(self, shard: int) -> MappedFile:
        entry = self.manifest.shard(shard)
        path = self.manifest.shards_storage.local_path(entry.name)
        assert path is not None
        try:
            return MappedFile(path, entry.num_bytes)
        except DataError as error:
            raise DataError(f"shard {error}, or index the changed tars again") from None

    def _read_remote(self, groups: Sequence[RangeGroup], data: list[memoryview]) -> None:
        """Fetch the ranges of all shards at the same time into their places in `data`."""
        storage, manifest = self.manifest.shards_storage, self.manifest

        def fetch(group: RangeGroup) -> memoryview:
            name = manifest.shard(group.shard).name
            return memoryview(storage.read_range(name, group.start, group.end - group.start))

        for group, found in zip(groups, self._pool.map(fetch, groups), strict=True):
            for position, start, end in group.members:
                data[position] = found[start - group.start : end - group.start]


@dataclass
class RangeGroup:
    """One request: bytes `[start, end)` of a shard, and (position in the batch, start, end)."""

    shard: int
    start: int
    end: int
    members: list[tuple[int, int, int]]


def coalesce(
    shard: int, positions: NDArray[np.int64], starts: NDArray[np.int64], sizes: NDArray[np.int64]
) -> list[RangeGroup]:
    """Ranges of one shard grouped into requests: neighbours with small gaps go together."""
    order = np.lexsort((positions, starts))
    columns = (positions[order].tolist(), starts[order].tolist(), sizes[order].tolist())
    groups: list[RangeGroup] = []
    for position, start, size in zip(*columns, strict=True):
        end, last = start + size, groups[-1] if groups else None
        near = last is not None and start - last.end <= MAX_GAP_BYTES
        if last is not None and near and end - last.start <= MAX_REQUEST_BYTES:
            last.end = max(last.end, end)
            last.members.append((position, start, end))
        else:
            groups.append(RangeGroup(shard, start, end, [(position, start, end)]))
    return groups


def _by_shard(shards: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every shard of a batch with the positions of its samples, in increasing order."""
    if not len(shards):
        return
    order = np.argsort(shards, kind="stable")
    bounds = np.flatnonzero(np.diff(shards[order])) + 1
    for at in np.split(order, bounds):
        yield int(shards[at[0]]), at
