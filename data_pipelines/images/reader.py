"""Sample ids to encoded image bytes, straight out of the tars."""

import mmap
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.lru import Lru
from data_pipelines.manifest import ShardManifest, ShardRows

MAX_OPEN_SHARDS = 256
MAX_GAP_BYTES = 256 << 10
"""Ranges closer than this are fetched in one request: cheaper than a second round trip."""
MAX_REQUEST_BYTES = 16 << 20
CONCURRENT_REQUESTS = 16


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
class _Range:
    """Bytes of one sample: `position` in the batch, `[offset, end)` in the shard."""

    position: int
    offset: int
    end: int


class ImageReader:
    """Reads samples of a dataset by id. Local tars are memory-mapped, others read by ranges.

    Args:
        verify: compare every sample's crc32 with the index (about 0.1 ms per 100 KB image);
            a difference raises DataError naming the sample.
    """

    def __init__(self, manifest: ShardManifest, *, verify: bool = False) -> None:
        self.manifest = manifest
        self.verify = verify
        self._maps: Lru[int, memoryview] = Lru(MAX_OPEN_SHARDS)
        self._pool: ThreadPoolExecutor | None = None

    def read(self, ids: NDArray[np.int64]) -> list[EncodedSample]:
        """The samples, in the order of `ids`.

        Raises:
            DataError: an id outside the dataset, a missing or changed shard or index.
        """
        shards, rows = self.manifest.locate(np.asarray(ids, dtype=np.int64))
        samples: list[EncodedSample | None] = [None] * len(shards)
        for shard in np.unique(shards).tolist():
            index, name = self.manifest.rows(shard), self.manifest.shard(shard).name
            positions = np.flatnonzero(shards == shard)
            data = self._read_shard(shard, index, positions, rows)
            for position in positions.tolist():
                row = int(rows[position])
                sample = EncodedSample(
                    int(ids[position]), index.key(row), name, int(index.label[row]),
                    data[position], int(index.height[row]), int(index.width[row]),
                )  # fmt: skip
                if self.verify:
                    _check_crc(sample, int(index.crc32[row]))
                samples[position] = sample
        return [sample for sample in samples if sample is not None]

    def _read_shard(
        self,
        shard: int,
        index: ShardRows,
        positions: NDArray[np.int64],
        rows: NDArray[np.int64],
    ) -> dict[int, memoryview]:
        ranges = []
        for position in positions.tolist():
            row = rows[position]
            offset = int(index.offset[row])
            ranges.append(_Range(position, offset, offset + int(index.size[row])))
        name = self.manifest.shard(shard).name
        if self.manifest.shards_storage.local_path(name) is None:
            return self._read_remote(name, ranges)
        mapped = self._maps.get(shard, lambda: self._map(shard))
        return {r.position: mapped[r.offset : r.end] for r in ranges}

    def _map(self, shard: int) -> memoryview:
        entry = self.manifest.shard(shard)
        path = self.manifest.shards_storage.local_path(entry.name)
        assert path is not None
        try:
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (FileNotFoundError, ValueError):
            # mmap refuses empty files with ValueError.
            raise DataError(f"shard {path} is missing or empty; restore it") from None
        if len(mapped) != entry.num_bytes:
            raise DataError(
                f"shard {path} has {len(mapped)} bytes, the manifest says {entry.num_bytes}; "
                "restore it, or index the changed tars again"
            )
        return mapped

    def _read_remote(self, name: str, ranges: Sequence[_Range]) -> dict[int, memoryview]:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(CONCURRENT_REQUESTS, thread_name_prefix="ranges")
        storage = self.manifest.shards_storage

        def fetch(group: list[_Range]) -> list[tuple[int, memoryview]]:
            start, end = group[0].offset, max(r.end for r in group)
            data = memoryview(storage.read_range(name, start, end - start))
            return [(r.position, data[r.offset - start : r.end - start]) for r in group]

        return {
            position: data
            for found in self._pool.map(fetch, coalesce(ranges))
            for position, data in found
        }


def coalesce(ranges: Sequence[_Range]) -> list[list[_Range]]:
    """Ranges of one shard grouped into requests: neighbours with small gaps go together."""
    groups: list[list[_Range]] = []
    end = 0
    for item in sorted(ranges, key=lambda r: (r.offset, r.position)):
        joins = groups and item.offset - end <= MAX_GAP_BYTES
        if joins and item.end - groups[-1][0].offset <= MAX_REQUEST_BYTES:
            groups[-1].append(item)
            end = max(end, item.end)
        else:
            groups.append([item])
            end = item.end
    return groups


def _check_crc(sample: EncodedSample, expected: int) -> None:
    found = zlib.crc32(sample.data)
    if found != expected:
        raise DataError(
            f"sample {sample.key} (id {sample.id}) of {sample.shard} has crc32 {found:08x}, the "
            f"index says {expected:08x}; its bytes changed: restore the shard"
        )
