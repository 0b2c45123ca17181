"""Working ahead in a thread: ordered, bounded, stoppable, honest about errors."""

import gc
import itertools
import threading
import time

import pytest

from data_pipelines.errors import UserError
from data_pipelines.prefetch import Prefetcher


def _prefetch_threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert condition()


def test_results_come_in_order():
    with Prefetcher(lambda x: x * x, range(20), depth=3) as results:
        assert list(results) == [x * x for x in range(20)]
    assert _prefetch_threads() == 0


def test_no_more_results_than_depth_are_made_ahead():
    made: list[int] = []
    with Prefetcher(made.append, itertools.count(), depth=3) as results:
        _wait_until(lambda: len(made) == 3)
        time.sleep(0.05)
        assert len(made) == 3
        next(results)
        _wait_until(lambda: len(made) == 4)


def test_error_arrives_at_its_place():
    with Prefetcher(lambda x: 1 // (3 - x), range(9), depth=4) as results:
        assert [next(results) for _ in range(3)] == [0, 0, 1]
        with pytest.raises(ZeroDivisionError):
            next(results)
        assert list(results) == []


def test_error_of_the_requests_arrives_too():
    def requests():
        yield 1
        raise KeyError("requests")

    with Prefetcher(str, requests(), depth=2) as results:
        assert next(results) == "1"
        with pytest.raises(KeyError):
            next(results)


def test_closing_early_ends_the_thread():
    results = Prefetcher(str, itertools.count(), depth=2)
    next(results)
    results.close()
    assert _prefetch_threads() == 0
    assert list(results) == []
    results.close()


def test_a_forgotten_one_ends_too():
    results = Prefetcher(str, itertools.count(), depth=2)
    next(results)
    del results
    gc.collect()
    _wait_until(lambda: _prefetch_threads() == 0)


def test_waiting_is_counted():
    gate = threading.Event()
    with Prefetcher(lambda _: gate.wait(20), range(1), depth=1) as results:
        threading.Timer(0.05, gate.set).start()
        next(results)
        assert results.wait_seconds > 0.01


def test_depth_zero_is_refused():
    with pytest.raises(UserError, match=r"depth=0 .*is not allowed"):
        Prefetcher(str, [], depth=0)


def test_several_threads_keep_the_order_and_the_bound():
    running, most = [0], [0]
    lock = threading.Lock()

    def slow(number: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.02 if number % 3 else 0.001)
        with lock:
            running[0] -= 1
        return number * number

    with Prefetcher(slow, range(40), depth=4, threads=3) as results:
        assert list(results) == [number * number for number in range(40)]
    assert 1 < most[0] <= 3


def test_an_error_among_several_threads_comes_at_its_place():
    def sometimes(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        time.sleep(0.01)
        return number

    results = Prefetcher(sometimes, range(40), depth=6, threads=4)
    assert [next(results) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(results)
    assert list(results) == []
