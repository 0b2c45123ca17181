"""Work ahead of a consumer in background threads."""

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data_pipelines.errors import UserError

T = TypeVar("T")
R = TypeVar("R")

_RESULTS_PER_THREAD = 4
"""Of `ordered_map`: keeps its threads busy while one item takes longer."""


@dataclass(frozen=True)
class _Done:
    """Last result there is; `error` is raised in the consumer."""

    error: BaseException | None


@dataclass
class _Shared:
    """What threads and consumer share; the threads hold no reference to the Prefetcher itself."""

    requests: Iterator[Any]
    num_threads: int
    slots: threading.Semaphore
    taking: threading.Lock = field(default_factory=threading.Lock)
    """Held while the next request is taken, so that places are in its order."""
    arrived: threading.Condition = field(default_factory=threading.Condition)
    results: dict[int, Any] = field(default_factory=dict)
    num_taken: int = 0
    stopping: bool = False

    def stop(self) -> None:
        """No further request is begun."""
        self.stopping = True
        for _ in range(self.num_threads):
            self.slots.release()

    def put(self, place: int, result: Any) -> None:
        with self.arrived:
            self.results[place] = result
            self.arrived.notify_all()

    def get(self, place: int) -> Any:
        with self.arrived:
            self.arrived.wait_for(lambda: place in self.results)
            return self.results.pop(place)


class Prefetcher(Generic[R]):
    """Iterator over `function(request)` for every request, in order, computed ahead.

    At most `depth` results exist at any time, including those being computed and not counting
    those the consumer holds. `requests` is consumed in the background and may be infinite. An
    exception of `requests` or `function` is raised at its place in the order. Use it as a context
    manager, or call `close`, to stop early; a forgotten one stops when it is collected.

    Args:
        function: called from `threads` threads at a time.
        depth: bound on results, raised to `threads` where that is more.
        threads: results computed at the same time; the order stays that of the requests.
    """

    def __init__(
        self,
        function: Callable[[T], R],
        requests: Iterable[T],
        depth: int,
        threads: int = 1,
    ) -> None:
        if depth < 1 or threads < 1:
            raise UserError(
                f"prefetch depth={depth} with {threads} threads is not allowed; use 1 or more"
            )
        self.wait_seconds = 0.0
        """Time the consumer has spent waiting for results so far."""
        slots = threading.Semaphore(max(depth, threads))
        self._shared = _Shared(iter(requests), threads, slots)
        self._next_place = 0
        self._finished = False
        self._threads = [
            threading.Thread(
                target=_work, args=(function, self._shared), name="prefetch", daemon=True
            )
            for _ in range(threads)
        ]
        weakref.finalize(self, self._shared.stop)
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if self._finished:
            raise StopIteration
        started = time.perf_counter()
        result = self._shared.get(self._next_place)
        self.wait_seconds += time.perf_counter() - started
        self._next_place += 1
        if isinstance(result, _Done):
            self.close()
            if result.error is not None:
                raise result.error
            raise StopIteration
        self._shared.slots.release()
        return result

    def close(self) -> None:
        """Stop after the results being computed, and wait for them."""
        self._finished = True
        self._shared.stop()
        for thread in self._threads:
            if threading.current_thread() is not thread:
                thread.join()

    def __enter__(self) -> "Prefetcher[R]":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` over threads: results in input order, at most a few items per thread in memory.

    `items` is consumed in one of the threads; see Prefetcher.
    """
    with Prefetcher(function, items, _RESULTS_PER_THREAD * threads, threads) as results:
        yield from results


def _work(function: Callable[[Any], Any], shared: _Shared) -> None:
    while True:
        shared.slots.acquire()
        with shared.taking:
            if shared.stopping:
                return
            place = shared.num_taken
            shared.num_taken += 1
            try:
                request = next(shared.requests)
            except BaseException as error:  # delivered to the consumer, not handled here
                ended = isinstance(error, StopIteration)
                shared.put(place, _Done(None if ended else error))
                shared.stop()
                return
        try:
            shared.put(place, function(request))
        except BaseException as error:  # as above
            shared.put(place, _Done(error))
            shared.stop()
            return
