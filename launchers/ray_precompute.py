"""Precompute on a pool of Ray actors: items are handed out as actors become free.

The driver only hands out items and reads the shards back at the end; actors publish what they
make themselves. An actor that dies is replaced and its item given to another.
"""

from __future__ import annotations

import logging
import math
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage import Storage, open_storage
from data_pipelines.tokens.format import TokenSpec
from ifsq_train.config import PrecomputeConfig, to_dict
from ifsq_train.metrics.precompute import PrecomputeMetrics
from ifsq_train.precompute import preflight, with_absolute_paths
from ifsq_train.precompute_run import (
    CheckedShard,
    CheckShards,
    ItemResult,
    OnItem,
    PrecomputeReport,
    PrecomputeRun,
    WorkItem,
    check_shards,
    pending_items,
    plan_items,
    published_report,
)
from launchers.precompute_line import PrecomputeLine
from launchers.ray_actors import ITEMS_PER_ENCODER, EncoderActor, ReaderActor
from launchers.ray_cluster import ray_session

logger = logging.getLogger(__name__)

MAX_DEATHS_PER_ITEM = 3
"""An item that ends its actor this often is to blame itself."""
MAX_DEATHS_WHILE_OPENING = 3
"""In a row, per actor of the pool."""
_REMIND_SECONDS = 30.0
_CHECKED_AT_ONCE = 16
"""Shards read back by one task."""


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
        show_progress: one line with views per second, time left, and what encoders wait for.

    Raises:
        UserError: something in the recipe or its data, the output folder holds another job, or
            actors keep dying.
    """
    if num_actors < 1:
        raise UserError(f"num_actors={num_actors} is not allowed; use 1 or more")
    config = with_absolute_paths(config)
    storage, requested = open_storage(config.output), preflight(config)
    report = published_report(storage, requested, config.decoder)
    if report is not None:
        return report
    num_actors = _useful_actors(storage, requested, num_actors)
    slots = math.ceil(num_actors * cpus_per_actor + num_readers * cpus_per_reader)
    with ray_session(address, min_cpus=slots) as ray:
        readers = _start_readers(ray, config, num_readers, cpus_per_reader)
        start = _actor_starter(ray, config, cpus_per_actor, gpus_per_actor, readers)
        pool = ActorPool(ray, start, num_actors)
        try:
            with (
                PrecomputeMetrics(config.output, num_actors) as metrics,
                PrecomputeLine(pool.spec().num_rows, show_progress) as line,
            ):
                counting = metrics.counting(on_item)
                run = PrecomputeRun(
                    storage, pool.spec(), config.max_bad_samples, counting, _checker(ray)
                )
                metrics.expect(run.spec.num_rows)
                for items in run.rounds():
                    for result in pool.make(items):
                        run.done(result)
                        metrics.item(result, pool.retries)
                        line.item(run.rows_done, result)
                return run.finish(pool.restarts)
        finally:
            pool.close()
            for reader in readers:
                ray.kill(reader)


def _actor_starter(
    ray: Any, config: PrecomputeConfig, cpus: float, gpus: float, readers: list[Any]
) -> Callable[[], Any]:
    # Restarting is the pool's business: an actor must open its tokenizer before it works.
    actor_class = ray.remote(EncoderActor).options(
        num_cpus=cpus,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        max_concurrency=ITEMS_PER_ENCODER + 1,
    )
    device, threads = "cuda" if gpus else "cpu", max(1, int(cpus))
    recipe = to_dict(config)
    return lambda: actor_class.remote(recipe, device, threads, readers)


def _start_readers(ray: Any, config: PrecomputeConfig, count: int, cpus: float) -> list[Any]:
    # Stateless: Ray may start a lost one again anywhere and repeat what it was asked.
    actor_class = ray.remote(ReaderActor).options(
        num_cpus=cpus, max_restarts=-1, max_task_retries=-1, max_concurrency=2
    )
    recipe, threads = to_dict(config), max(1, int(cpus))
    return [actor_class.remote(recipe, threads) for _ in range(count)]


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
                checked += _plain_errors(ray, waiting.popleft())
        for call in waiting:
            checked += _plain_errors(ray, call)
        return checked

    return check


def _plain_errors(ray: Any, call: Any) -> Any:
    """The result; a user's mistake found elsewhere is raised as itself."""
    from ray.exceptions import RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise


def _useful_actors(storage: Storage, spec: TokenSpec, num_actors: int) -> int:
    pending = pending_items(storage, plan_items(spec))
    return max(1, min(num_actors, len(pending)))


@dataclass(eq=False)
class _Actor:
    """An actor of the pool and the items it has been given."""

    handle: Any
    items: dict[int, WorkItem] = field(default_factory=dict)
    opened: bool = False
    lost: bool = False


class ActorPool:
    """Actors with `open() -> TokenSpec` and `make(item)`; the lost are replaced.

    Each actor has up to `ITEMS_PER_ENCODER` items at a time. What an actor had when it was lost is
    given to others, from then on one at a time, so that an item which ends its actor is known.
    Ray tells of every finished call, so an item costs the driver the same for any number of actors.

    Attributes:
        restarts: actors replaced so far.
        retries: items given out again.
    """

    def __init__(self, ray: Any, start_actor: Callable[[], Any], size: int) -> None:
        self.restarts = 0
        self.retries = 0
        self._ray, self._start_actor, self._size = ray, start_actor, size
        self._actors: dict[_Actor, None] = {}
        self._by_load: list[dict[_Actor, None]] = [{} for _ in range(ITEMS_PER_ENCODER + 1)]
        """Opened actors by the number of their items."""
        self._calls: dict[Any, tuple[_Actor, WorkItem | None]] = {}
        """Actor and item of every call; no item while the actor opens."""
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._spec: TokenSpec | None = None
        self._suspects: Counter[int] = Counter()
        """Deaths of actors by item: that had it among others, then that had it alone."""
        self._deaths_while_opening = 0
        for _ in range(size):
            self._open_actor()

    def spec(self) -> TokenSpec:
        """What the actors make; waits until the first has opened.

        Raises:
            UserError: of an actor, or actors keep dying.
        """
        while self._spec is None:
            outcomes = list(self._wait())
            assert not outcomes, "nothing was handed out yet"
        return self._spec

    def make(self, items: list[WorkItem]) -> Iterator[ItemResult]:
        """Results as they come, in any order.

        Raises:
            UserError: of an actor, or actors keep dying.
        """
        waiting, left = deque(items), len(items)
        while left:
            self._hand_out(waiting)
            for outcome in self._wait():
                if isinstance(outcome, WorkItem):
                    self.retries += 1
                    waiting.appendleft(outcome)
                else:
                    left -= 1
                    yield outcome

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor.handle)

    def _hand_out(self, waiting: deque[WorkItem]) -> None:
        """To the least busy first."""
        for load in range(ITEMS_PER_ENCODER):
            passed: list[_Actor] = []
            while waiting and self._by_load[load]:
                actor, _ = self._by_load[load].popitem()
                if self._may_join(actor, waiting[0]):
                    item = waiting.popleft()
                    actor.items[item.index] = item
                    self._by_load[load + 1][actor] = None
                    self._called(actor.handle.make.remote(item), actor, item)
                else:
                    passed.append(actor)
            self._by_load[load].update(dict.fromkeys(passed))

    def _may_join(self, actor: _Actor, item: WorkItem) -> bool:
        """A suspect works alone."""
        return not actor.items or not (
            self._suspects[item.index] or any(self._suspects[index] for index in actor.items)
        )

    def _open_actor(self) -> None:
        actor = _Actor(self._start_actor())
        self._actors[actor] = None
        self._called(actor.handle.open.remote(), actor, None)

    def _called(self, call: Any, actor: _Actor, item: WorkItem | None) -> None:
        self._calls[call] = (actor, item)
        call.future().add_done_callback(lambda _: self._finished.put(call))

    def _wait(self) -> Iterator[ItemResult | WorkItem]:
        """Results, and items whose actor was lost; possibly none after a while."""
        call = self._next_finished()
        if call is None and self._spec is None:
            logger.warning(
                "no actor could start for %.0f s; does the cluster have their CPUs and GPUs free?",
                _REMIND_SECONDS,
            )
        if call is not None:
            outcome = self._settle(call)
            if outcome is not None:
                yield outcome

    def _next_finished(self) -> Any:
        """A finished call; None if there is none for a while."""
        try:
            return self._finished.get(timeout=_REMIND_SECONDS)
        except queue.Empty:
            return None

    def _settle(self, call: Any) -> ItemResult | WorkItem | None:
        """What came of a finished call; None of one that opened or lost an idle actor."""
        from ray.exceptions import OutOfMemoryError, RayActorError

        actor, item = self._calls[call]
        try:
            value = _plain_errors(self._ray, call)
        except (RayActorError, OutOfMemoryError) as error:
            del self._calls[call]
            self._lose(actor, error)
            return item
        del self._calls[call]
        if item is None:
            self._opened(actor, value)
            return None
        load = len(actor.items)
        del actor.items[item.index]
        if not actor.lost:  # it may have died since
            del self._by_load[load][actor]
            self._by_load[load - 1][actor] = None
        self._suspects.pop(item.index, None)
        return value

    def _opened(self, actor: _Actor, spec: TokenSpec) -> None:
        actor.opened = True
        self._by_load[0][actor] = None
        self._deaths_while_opening = 0
        if self._spec is None:
            self._spec = spec
        elif differences := self._spec.differences(spec):
            raise UserError(
                f"actors on different machines would make different tokens"
                f" ({'; '.join(differences)}); use machines of one kind"
            )

    def _lose(self, actor: _Actor, error: Exception) -> None:
        """Once per lost actor, whichever of its calls tells first: replace it."""
        if actor.lost:
            return
        actor.lost = True
        del self._actors[actor]
        self._by_load[len(actor.items)].pop(actor, None)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("an encoder was lost (%s) and is replaced", reason)
        self._ray.kill(actor.handle)  # it may only be unreachable
        self._blame(actor, reason)
        self.restarts += 1
        self._open_actor()

    def _blame(self, actor: _Actor, reason: str) -> None:
        if not actor.opened:
            self._deaths_while_opening += 1
            if self._deaths_while_opening >= MAX_DEATHS_WHILE_OPENING * self._size:
                raise UserError(
                    f"{self._deaths_while_opening} encoders in a row died while opening"
                    f" (the last: {reason}); give them more memory or look into Ray's logs"
                )
        alone = len(actor.items) == 1
        for item in actor.items.values():
            deaths = self._suspects[item.index] = self._suspects[item.index] + 1
            if alone and deaths >= MAX_DEATHS_PER_ITEM:
                last = item.first_sample + item.num_samples - 1
                raise UserError(
                    f"images {item.first_sample} to {last} ended their encoder"
                    f" {deaths} times (the last: {reason}); give actors more memory,"
                    " lower batch_size or look into Ray's logs"
                )
