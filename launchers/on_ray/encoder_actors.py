"""What runs inside Ray actors of a precompute: encoders, and readers apart from them if asked."""

from __future__ import annotations

import itertools
import queue
import threading
from concurrent.futures import Future
from typing import Any

from data_pipelines.storage.open import open_storage
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.work_items import WorkItem
from ifsq_train.config import PrecomputeConfig
from ifsq_train.config.load import unpacked
from ifsq_train.precompute.job import ItemEncoder
from ifsq_train.precompute.pixels import PixelRows, RowRange, ViewPixels
from ifsq_train.precompute.progress import ItemResult
from ifsq_train.precompute.stream import DecodePixels, publishing
from launchers.on_ray.errors import plain_result


class QueuedItems:
    """A feed of items that arrive one by one, never ending."""

    def __init__(self) -> None:
        self._items: queue.SimpleQueue[WorkItem] = queue.SimpleQueue()

    def put(self, item: WorkItem) -> None:
        """One more item."""
        self._items.put(item)

    def next(self, timeout: float | None) -> WorkItem | None:
        """The next queued item; None where none came within `timeout` seconds."""
        try:
            return self._items.get(timeout=timeout) if timeout != 0 else self._items.get_nowait()
        except queue.Empty:
            return None


class EncoderActor:
    """One encoder, opened by the first call so that its errors arrive.

    Its methods are called in threads of the actor; one more thread encodes.
    """

    def __init__(
        self, recipe: dict[str, Any], device: str, decode_threads: int, readers: list[Any]
    ) -> None:
        self._config = unpacked(recipe, PrecomputeConfig)
        self._device, self._decode_threads, self._readers = device, decode_threads, readers
        self._feed = QueuedItems()
        self._waiting: dict[int, Future[ItemResult]] = {}
        self._failure: BaseException | None = None
        self._lock = threading.Lock()

    def open(self) -> TokenSpec:
        """Load source and tokenizer; what this machine would make."""
        pixels_on = "cpu" if self._readers else self._device
        encoder = ItemEncoder(self._config, self._device, self._decode_threads, pixels_on)
        decode = read_elsewhere(self._readers) if self._readers else None
        thread = threading.Thread(target=self._encode, args=(encoder, decode), daemon=True)
        thread.start()
        return encoder.spec

    def make(self, item: WorkItem) -> ItemResult:
        """Encode and publish; waits for it."""
        future: Future[ItemResult] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._waiting[item.index] = future
        self._feed.put(item)
        return future.result()

    def _encode(self, encoder: ItemEncoder, decode: DecodePixels | None) -> None:
        try:
            finish = publishing(open_storage(self._config.output))
            for result in encoder.make(self._feed, finish, decode):
                with self._lock:
                    future = self._waiting.pop(result.item.index)
                future.set_result(result)
        except BaseException as error:  # delivered to the callers, not handled here
            with self._lock:
                self._failure = error
                waiting, self._waiting = self._waiting, {}
            for future in waiting.values():
                future.set_exception(error)


class ReaderActor:
    """Reads and decodes on a machine without a GPU; stateless, so Ray may restart it anywhere."""

    def __init__(self, recipe: dict[str, Any], decode_threads: int) -> None:
        self._config = unpacked(recipe, PrecomputeConfig)
        self._decode_threads = decode_threads
        self._pixels: ViewPixels | None = None
        self._opening = threading.Lock()

    def decode(self, rows: RowRange) -> PixelRows:
        """The pixels of a range, as uint8 for the way."""
        with self._opening:
            if self._pixels is None:
                self._pixels = ViewPixels(self._config, "cpu", self._decode_threads)
        return self._pixels.decode(rows).packed()


def read_elsewhere(readers: list[Any]) -> DecodePixels:
    """Decoding by reader actors, one after the other in turn."""
    turns = itertools.cycle(readers)
    return lambda rows: _Remote(next(turns).decode.remote(rows))


class _Remote:
    """Pixels on their way from another actor."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def result(self) -> PixelRows:
        """Wait for the actor's answer; raises what the actor raised."""
        import ray

        return plain_result(ray, self._reference)
