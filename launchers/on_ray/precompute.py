"""Precompute on a pool of Ray actors: items are handed out as actors become free.

The driver only hands out items and reads the shards back at the end; actors publish what they
make themselves. An actor that dies is replaced and its item given to another.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.storage.outputs import claim
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.writer import TOKEN_WRITER
from data_pipelines.work_items import WorkItem
from ifsq_train.config import PrecomputeConfig
from ifsq_train.config.load import packed_recipe
from ifsq_train.config.paths import with_absolute_paths
from ifsq_train.precompute.job import notes_of, preflight
from ifsq_train.precompute.metrics import PrecomputeMetrics
from ifsq_train.precompute.progress import (
    CheckedShard,
    CheckShards,
    ItemResult,
    OnItem,
    PrecomputeReport,
    PrecomputeRun,
    check_shards,
    pending_items,
    plan_items,
    published_report,
)
from launchers.monitoring.precompute_line import PrecomputeLine
from launchers.on_ray.actor_pool import ITEMS_PER_ACTOR, ActorPool, PoolWords
from launchers.on_ray.cluster import ray_session
from launchers.on_ray.encoder_actors import EncoderActor, ReaderActor
from launchers.on_ray.errors import plain_result

logger = logging.getLogger(__name__)

_CHECKED_AT_ONCE = 16
"""Shards read back by one task."""

EncoderPool = ActorPool[TokenSpec, WorkItem, ItemResult]
ENCODER_WORDS = PoolWords[TokenSpec, WorkItem](
    actor="encoder",
    item=lambda item: f"images {item.first_sample} to {item.first_sample + item.num_samples - 1}",
    remedy="give actors more memory, lower batch_size or look into Ray's logs",
    differences=TokenSpec.differences,
)


def precompute_on_ray(
    config: PrecomputeConfig,
    *,
    num_actors: int,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    num_readers: int = 0,
    cpus_per_reader: float = 1,
    address: str | None = None,
    on_item: OnItem | None = None,
    show_progress: bool = False,
    overwrite: bool = False,
) -> PrecomputeReport:
    """Encode a dataset with several encoders, or what is left of it.

    A dataset that is finished already is found so without starting Ray.

    Args:
        config: the recipe; its folders must be reachable from every node of the cluster.
        num_actors: encoders; fewer are started where fewer items are left.
        cpus_per_actor: CPU slots of an actor, which also is its number of decoding threads.
        gpus_per_actor: 0 encodes on the CPU; a fraction lets actors share a GPU.
        num_readers: actors that read and decode for the encoders, for clusters with CPU nodes
            beside the GPU nodes; 0 leaves that to the encoders.
        cpus_per_reader: CPU slots of a reader, also its number of decoding threads.
        address: Ray cluster to join; None starts one on this machine.
        on_item: called in this process after every item.
        overwrite: remove tokens that were written to the folder before.
        show_progress: one line with views per second, time left, and what encoders wait for.

    Raises:
        UserError: something in the recipe or its data, the output folder holds another job, or
            actors keep dying.
    """
    if num_actors < 1:
        raise UserError(f"num_actors={num_actors} is not allowed; use 1 or more")
    config = with_absolute_paths(config)
    storage = open_storage(config.output)
    requested = _claimed(config, storage, overwrite)
    report = published_report(storage, requested, config.decoder)
    if report is not None:
        return report
    num_actors = _useful_actors(storage, requested, num_actors)
    slots = math.ceil(num_actors * cpus_per_actor + num_readers * cpus_per_reader)
    with (
        ray_session(address, min_cpus=slots) as ray,
        _readers(ray, config, num_readers, cpus_per_reader) as readers,
    ):
        start = _actor_starter(ray, config, cpus_per_actor, gpus_per_actor, readers)
        with (
            closing(EncoderPool(ray, start, num_actors, ENCODER_WORDS)) as pool,
            PrecomputeMetrics(config.output, num_actors) as metrics,
            PrecomputeLine(pool.opened().num_rows, show_progress) as line,
        ):
            counting = metrics.counting(on_item)
            limit, notes = config.max_bad_samples, notes_of(config)
            run = PrecomputeRun(storage, pool.opened(), limit, counting, _checker(ray), notes)
            return _make_all(run, pool, metrics, line)


def _claimed(config: PrecomputeConfig, storage: Storage, overwrite: bool) -> TokenSpec:
    """What will be written, once the output folder is known to be free for it."""
    requested = preflight(config)
    claim(storage, TOKEN_WRITER, overwrite=overwrite)
    # What was there before an overwrite no longer counts as grown.
    return preflight(config) if overwrite else requested


def _make_all(
    run: PrecomputeRun, pool: EncoderPool, metrics: PrecomputeMetrics, line: PrecomputeLine
) -> PrecomputeReport:
    """Have every item made and the shards checked; publishes the dataset."""
    metrics.expect(run.spec.num_rows)
    for items in run.rounds():
        for result in pool.make(items):
            run.done(result)
            metrics.item(result, pool.retries)
            line.item(run.rows_done, result)
    return run.finish(pool.restarts)


def _actor_starter(
    ray: Any, config: PrecomputeConfig, cpus: float, gpus: float, readers: list[Any]
) -> Callable[[], Any]:
    # Restarting is the pool's business: an actor must open its tokenizer before it works.
    actor_class = ray.remote(EncoderActor).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=ITEMS_PER_ACTOR + 1,
    )
    device, threads = "cuda" if gpus else "cpu", max(1, int(cpus))
    recipe = packed_recipe(config)
    return lambda: actor_class.remote(recipe, device, threads, readers)


def _start_readers(ray: Any, config: PrecomputeConfig, count: int, cpus: float) -> list[Any]:
    # Stateless: Ray may start a lost one again anywhere and repeat what it was asked.
    actor_class = ray.remote(ReaderActor).options(
        num_cpus=cpus, max_restarts=-1, max_task_retries=-1, max_concurrency=2
    )
    recipe, threads = packed_recipe(config), max(1, int(cpus))
    return [actor_class.remote(recipe, threads) for _ in range(count)]


@contextmanager
def _readers(
    ray: Any, config: PrecomputeConfig, num_readers: int, cpus: float
) -> Iterator[list[Any]]:
    """Reader actors, ended at the end."""
    readers = _start_readers(ray, config, num_readers, cpus)
    try:
        yield readers
    finally:
        for reader in readers:
            ray.kill(reader)


def _checker(ray: Any) -> CheckShards:
    """Reading shards back on all nodes: a driver alone would need hours for a large dataset."""
    # The encoders hold the CPUs; they have nothing else to do meanwhile.
    task = ray.remote(check_shards).options(num_cpus=0, scheduling_strategy="SPREAD")

    def check(storage: Storage, spec: TokenSpec, items: list[WorkItem]) -> list[CheckedShard]:
        shared = ray.put(spec)
        parts = [items[at : at + _CHECKED_AT_ONCE] for at in range(0, len(items), _CHECKED_AT_ONCE)]
        slots = max(1, int(ray.cluster_resources().get("CPU", 1)))
        waiting: deque[Any] = deque()
        checked: list[CheckedShard] = []
        for part in parts:
            waiting.append(task.remote(storage, shared, part))
            if len(waiting) >= 2 * slots:
                checked += plain_result(ray, waiting.popleft())
        for call in waiting:
            checked += plain_result(ray, call)
        return checked

    return check


def _useful_actors(storage: Storage, spec: TokenSpec, num_actors: int) -> int:
    pending = pending_items(storage, plan_items(spec))
    return max(1, min(num_actors, len(pending)))
