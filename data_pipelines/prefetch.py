"""Work ahead of a consumer in one background thread."""

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data_pipelines.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Done:
    """Last thing in the queue; `error` is raised in the consumer."""

    error: BaseException | None


@dataclass(frozen=True)
class _Shared:
    """What thread and consumer share; the thread holds no reference to the Prefetcher itself."""

    slots: threading.Semaphore
    results: "queue.SimpleQueue[Any]" = field(default_factory=queue.SimpleQueue)
    stopping: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        self.stopping.set()
        self.slots.release()


class Prefetcher(Generic[R]):
    """Iterator over `function(request)` for every request, in order, computed ahead.

    At most `depth` results exist at any time, including the one being computed and not counting
    those the consumer holds. `requests` is consumed in the background thread and may be infinite.
    An exception of `requests` or `function` is raised at its place in the order. Use it as a
    context manager, or call `close`, to stop early; a forgotten one stops when it is collected.
    """

    def __init__(self, function: Callable[[T], R], requests: Iterable[T], depth: int) -> None:
        if depth < 1:
            raise UserError(f"prefetch depth={depth} is not allowed; use 1 or more")
        self.wait_seconds = 0.0
        """Time the consumer has spent waiting for results so far."""
        self._shared = _Shared(threading.Semaphore(depth))
        self._finished = False
        self._thread = threading.Thread(
            target=_work, args=(function, requests, self._shared), name="prefetch", daemon=True
        )
        weakref.finalize(self, self._shared.stop)
        self._thread.start()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if self._finished:
            raise StopIteration
        started = time.perf_counter()
        result = self._shared.results.get()
        self.wait_seconds += time.perf_counter() - started
        if isinstance(result, _Done):
            self._finished = True
            self._thread.join()
            if result.error is not None:
                raise result.error
            raise StopIteration
        self._shared.slots.release()
        return result

    def close(self) -> None:
        """Stop after the result being computed, and wait for that."""
        self._finished = True
        self._shared.stop()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> "Prefetcher[R]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _work(function: Callable[[T], R], requests: Iterable[T], shared: _Shared) -> None:
    try:
        for request in requests:
            shared.slots.acquire()
            if shared.stopping.is_set():
                break
            shared.results.put(function(request))
    except BaseException as error:  # delivered to the consumer, not handled here
        shared.results.put(_Done(error))
    else:
        shared.results.put(_Done(None))
