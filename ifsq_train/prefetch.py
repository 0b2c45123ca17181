"""Batches loaded ahead of the step that needs them, by one thread with bounded memory."""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from typing import Protocol

from ifsq_train.context import RunContext
from ifsq_train.tasks.base import Batch


class BatchLoader(Protocol):
    """Where batches come from."""

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's share of global batch `step`, on the host."""
        ...


class BatchPrefetcher:
    """Iterates over a rank's batches from `first_step` to `last_step`, exclusive.

    Loading is a pure function of the step, so nothing is lost or repeated when the run is
    resumed. Errors of the loader are raised by `next`. Use as a context manager: leaving it
    ends the thread.

    Args:
        data: loads batches.
        context: rank, world size and device; on CUDA the batch is copied from pinned memory.
        first_step, last_step: range of steps.
        depth: batches held at most, besides the one in use.
    """

    def __init__(
        self, data: BatchLoader, context: RunContext, first_step: int, last_step: int, depth: int
    ) -> None:
        self._data, self._context = data, context
        self._steps = range(first_step, last_step)
        self._queue: queue.Queue[Batch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="batch-prefetch", daemon=True)

    def __enter__(self) -> BatchPrefetcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        while self._thread.is_alive():
            # The thread may be waiting for room; make some until it sees the stop.
            try:
                self._queue.get(timeout=0.05)
            except queue.Empty:
                continue
        self._thread.join()

    def next(self) -> Batch:
        """The next batch, on the device.

        Raises:
            StopIteration: after the last step.
            BaseException: whatever loading it raised.
        """
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        device = self._context.device
        if device.type == "cpu":
            return item
        return replace(
            item,
            inputs=item.inputs.to(device, non_blocking=True),
            labels=item.labels.to(device, non_blocking=True),
        )

    def _fill(self) -> None:
        try:
            for step in self._steps:
                batch = self._data.load(step, self._context.rank, self._context.world_size)
                if self._context.device.type == "cuda":
                    batch = replace(
                        batch, inputs=batch.inputs.pin_memory(), labels=batch.labels.pin_memory()
                    )
                if not self._put(batch):
                    return
            self._put(StopIteration())
        except BaseException as error:  # delivered to the consumer, who raises it
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._stop.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False
