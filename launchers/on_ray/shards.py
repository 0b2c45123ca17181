"""Packing and indexing on Ray: every shard is a task, on whatever machine is free.

Shards are pure functions that publish themselves atomically, so a task whose machine died is simply
run again, and an interrupted run continues with the shards that are missing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from data_pipelines.errors import UserError
from data_pipelines.images.packing.shards import MapShards
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.errors import plain_result

W = TypeVar("W")
R = TypeVar("R")

MAX_LOST_ATTEMPTS = 3
"""A shard whose worker is lost this often in a row ends the run."""


@contextmanager
def shards_on_ray(num_workers: int, address: str | None) -> Iterator[MapShards]:
    """A `map_shards` for packing and indexing that uses Ray, for the duration of a block.

    Args:
        num_workers: shards being made at a time, each by one CPU slot.
        address: Ray cluster to join, whose machines must all reach source and target; None starts
            one here.

    Raises:
        UserError: no cluster answers, or a shard's worker is lost again and again.
    """
    if num_workers < 1:
        raise UserError(f"--workers {num_workers} is not allowed; use 1 or more")
    with ray_session(address, min_cpus=num_workers) as ray:
        yield functools.partial(_map_shards, ray, num_workers)


def _map_shards(
    ray: Any, num_workers: int, function: Callable[[W], R], works: Iterable[W]
) -> Iterator[R]:
    task = ray.remote(_apply).options(num_cpus=1, max_retries=MAX_LOST_ATTEMPTS)
    shared = ray.put(function)
    waiting = iter(works)
    running: list[Any] = []
    try:
        while True:
            while len(running) < num_workers:
                try:
                    running.append(task.remote(shared, next(waiting)))
                except StopIteration:
                    break
            if not running:
                return
            (done,), running = ray.wait(running, num_returns=1)
            yield _result(ray, done)
    finally:
        for call in running:
            ray.cancel(call)


def _apply(function: Callable[[W], R], work: W) -> R:
    return function(work)


def _result(ray: Any, call: Any) -> Any:
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    try:
        return plain_result(ray, call)
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise UserError(
            f"a shard's worker was lost {MAX_LOST_ATTEMPTS + 1} times ({error}); give workers more"
            " memory, use smaller shards or look into Ray's logs"
        ) from None
