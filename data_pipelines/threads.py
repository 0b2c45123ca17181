"""Threads that keep the order of their input and bound what is in flight."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

MAX_DEFAULT_THREADS = 16


def default_threads() -> int:
    """CPUs this process may use, at most 16."""
    return min(len(os.sched_getaffinity(0)), MAX_DEFAULT_THREADS)


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`map` over threads: results in input order, at most a few items per thread in memory."""
    depth = 4 * threads
    with ThreadPoolExecutor(threads, thread_name_prefix="data") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) >= depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
