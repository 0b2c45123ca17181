"""Work items in, finished rows out; reading, encoding and finishing overlap.

Rows of all items go through the encoder one after the other, so its batches are full whatever the
size of an item; only when nothing more is at hand is a batch filled up with zeros. What is in
flight is bounded at every stage: a few batches of pixels, two batches on the device, and a few
finished shards on their way to the storage. A slow stage makes the others wait.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch

from data_pipelines.errors import UserError
from data_pipelines.storage.open import Storage
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.writer import publish_shard
from data_pipelines.work_items import WorkItem
from ifsq_train.precompute.encoder import EncodedArrays, EncodedViews, TokenEncoder
from ifsq_train.precompute.pixels import PixelRows, RowRange, split_rows
from ifsq_train.precompute.progress import STAGES, ItemResult
from ifsq_train.precompute.rows import ItemRows

PIXEL_BATCHES_AHEAD = 4
"""Batches being read or waiting for the encoder."""
SHARDS_BEING_PUBLISHED = 2
"""Finished items packed and sent at the same time; a third waits."""
MAX_FLUSH_WAIT_SECONDS = 0.05
"""How long a batch that is not full waits for further items before it is filled up."""

DecodePixels = Callable[[RowRange], "Pending"]
"""Begins reading and decoding a range of rows."""


FinishItem = Callable[[ItemRows], ItemResult]


class Pending(Protocol):
    """Pixels that will be there; a `Future` is one."""

    def result(self) -> PixelRows:
        """Wait for the pixels."""
        ...


class ItemFeed(Protocol):
    """Where work items come from."""

    def next(self, timeout: float | None) -> WorkItem | None:
        """The next item; None if there is none within `timeout` seconds (None: wait for ever).

        Raises:
            EndOfItems: there will be no more.
        """
        ...


class EndOfItems(Exception):
    """No item will come any more."""


class ListedItems:
    """A feed of items known beforehand."""

    def __init__(self, items: Iterable[WorkItem]) -> None:
        self._items = iter(items)

    def next(self, timeout: float | None) -> WorkItem | None:
        """The next item of the list, at once; EndOfItems after the last."""
        del timeout
        for item in self._items:
            return item
        raise EndOfItems


def publishing(storage: Storage) -> FinishItem:
    """Finishing an item by publishing its shard."""

    def publish(rows: ItemRows) -> ItemResult:
        encoded = rows.encoded()
        publish_shard(storage, encoded.item.index, encoded.data)
        return ItemResult(encoded.item, rows.num_rows, encoded.bad_samples)

    return publish


@dataclass(frozen=True)
class _Part:
    """Rows of a range that lie in one encoder batch."""

    pixels: PixelRows
    span: slice


@dataclass
class EncodeStream:
    """One encoder kept busy.

    Args:
        spec: what is made.
        encoder: on its device.
        decode: begins reading a range of rows.
        finish: called in a thread with the complete rows of an item, to publish them.
        max_bad_samples: an item with more ends the stream.
        batches_cross_items: whether an encoder batch may have rows of several items; where not,
            the last batch of every item is filled up.
    """

    spec: TokenSpec
    encoder: TokenEncoder
    decode: DecodePixels
    finish: FinishItem
    max_bad_samples: int
    batches_cross_items: bool = True
    _items: dict[int, ItemRows] = field(default_factory=dict)
    _ranges: Iterator[RowRange] = field(default_factory=lambda: iter(()))
    _reading: deque[Pending] = field(default_factory=deque)
    _batch: list[_Part] = field(default_factory=list)
    _on_device: deque[tuple[list[_Part], EncodedViews]] = field(default_factory=deque)
    _publishing: deque[Future[ItemResult]] = field(default_factory=deque)
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    _ended: bool = False

    def run(self, feed: ItemFeed) -> Iterator[ItemResult]:
        """Make items until the feed ends; a result means that it is finished.

        Raises:
            DataError: unreadable source, too many bad samples, or a shard that exists with other
                bytes.
        """
        with ThreadPoolExecutor(SHARDS_BEING_PUBLISHED, "publish") as pool:
            while True:
                self._read_ahead(feed)
                if self._reading:
                    self._take(self._waiting_for_pixels())
                elif self._rows_at_hand:
                    self._encode_batch()
                elif not self._on_device and self._ended:
                    break
                self._collect(pool, all_of_it=not self._reading)
                yield from self._published(SHARDS_BEING_PUBLISHED)
            yield from self._published(0)

    @property
    def _rows_at_hand(self) -> int:
        return sum(part.span.stop - part.span.start for part in self._batch)

    def _read_ahead(self, feed: ItemFeed) -> None:
        """Begin reading until enough is under way; waits only if there is nothing else to do."""
        while len(self._reading) < PIXEL_BATCHES_AHEAD:
            rows = next(self._ranges, None)
            if rows is not None:
                self._reading.append(self.decode(rows))
            elif self._ended or not self._next_item(feed):
                return

    def _next_item(self, feed: ItemFeed) -> bool:
        """Whether there is a further item."""
        timeout: float | None = 0.0
        if not self._reading:
            idle = not (self._batch or self._on_device or self._publishing)
            timeout = None if idle else MAX_FLUSH_WAIT_SECONDS
        try:
            with self._timed("items"):
                item = feed.next(timeout)
        except EndOfItems:
            self._ended = True
            return False
        if item is None:
            return False
        self._items[item.index] = ItemRows(self.spec, item, self.max_bad_samples)
        self._ranges = split_rows(item, self.spec.num_views, self.spec.batch_size)
        return True

    def _waiting_for_pixels(self) -> PixelRows:
        with self._timed("pixels"):
            return self._reading.popleft().result().unit_range()

    def _take(self, pixels: PixelRows) -> None:
        """Put rows into the batch; every time it is full, encode it."""
        count, at = pixels.rows.last - pixels.rows.first, 0
        while at < count:
            free = self.spec.batch_size - self._rows_at_hand
            part = slice(at, min(at + free, count))
            self._batch.append(_Part(pixels, part))
            at = part.stop
            if self._rows_at_hand == self.spec.batch_size:
                self._encode_batch()
        last = pixels.rows.last == pixels.rows.item.num_samples * self.spec.num_views
        if last and not self.batches_cross_items and self._batch:
            self._encode_batch()

    def _encode_batch(self) -> None:
        parts, self._batch = self._batch, []
        images = [part.pixels.images[part.span] for part in parts]
        with self._timed("encode"):
            joined = images[0] if len(images) == 1 else torch.cat(images)
            self._on_device.append((parts, self.encoder.encode(joined)))

    def _refuse(self, parts: list[_Part], faults: list[tuple[int, str]]) -> None:
        """Raise UserError: what is not a number is no token, no latent and no feature."""
        rows = [part.pixels.rows for part in parts for _ in range(part.span.start, part.span.stop)]
        places = [at for part in parts for at in range(part.span.start, part.span.stop)]
        image, network = faults[0]
        found = rows[image]
        row = found.first + places[image]
        sample = found.item.first_sample + row // self.spec.num_views
        raise UserError(
            f"{network} gives values that are not finite for {len(faults)} of {len(rows)} views of"
            f" a batch, first for sample {sample} (view {row % self.spec.num_views}); its weights"
            " have diverged, or precision is too low: take another checkpoint or precision: fp32"
        )

    def _collect(self, pool: ThreadPoolExecutor, all_of_it: bool) -> None:
        """Fetch what the device has finished. One batch stays behind, so that it has work."""
        while len(self._on_device) > (0 if all_of_it else 1):
            parts, views = self._on_device.popleft()
            with self._timed("encode"):
                arrays, faults = views.arrays(), views.faults()
            if faults:
                self._refuse(parts, faults)
            at = 0
            for part in parts:
                rows = part.span.stop - part.span.start
                self._add(pool, part, arrays.rows(slice(at, at + rows)))
                at += rows

    def _add(self, pool: ThreadPoolExecutor, part: _Part, arrays: EncodedArrays) -> None:
        index = part.pixels.rows.item.index
        rows = self._items[index]
        rows.add(part.pixels, part.span, arrays)
        if rows.complete:
            del self._items[index]
            self._publishing.append(pool.submit(self.finish, rows))

    def _published(self, at_most: int) -> Iterator[ItemResult]:
        """Results that are there; waits until at most so many are still being published."""
        while self._publishing:
            if len(self._publishing) <= at_most and not self._publishing[0].done():
                return
            with self._timed("publish"):
                result = self._publishing.popleft().result()
            seconds, self._seconds = self._seconds, dict.fromkeys(STAGES, 0.0)
            yield replace(result, stage_seconds=seconds)

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[stage] += time.perf_counter() - began
