"""Precompute on a pool of Ray actors: items are handed out as actors become free.

The driver only hands out items and reads the shards back at the end; actors publish what they
make themselves. An actor that dies is replaced and its item given to another.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage import Storage, open_storage
from data_pipelines.tokens.format import TokenSpec
from ifsq_train.config import PrecomputeConfig, to_dict
from ifsq_train.metrics.precompute import PrecomputeMetrics
from ifsq_train.precompute import ItemEncoder, preflight, with_absolute_paths
from ifsq_train.precompute_run import (
    ItemResult,
    OnItem,
    PrecomputeReport,
    PrecomputeRun,
    WorkItem,
    pending_items,
    plan_items,
    published_report,
)
from launchers.ray_cluster import ray_session

logger = logging.getLogger(__name__)

MAX_DEATHS_PER_ITEM = 3
"""An item that ends its actor this often is to blame itself."""
MAX_DEATHS_WHILE_OPENING = 3
"""In a row, per actor of the pool."""
_REMIND_SECONDS = 30.0


def precompute_on_ray(
    config: PrecomputeConfig,
    *,
    num_actors: int,
    cpus_per_actor: float = 1,
    gpus_per_actor: float = 0,
    address: str | None = None,
    on_item: OnItem | None = None,
) -> PrecomputeReport:
    """Encode a dataset with several encoders, or what is left of it.

    A dataset that is finished already is found so without starting Ray.

    Args:
        config: the recipe; its folders must be reachable from every node of the cluster.
        num_actors: encoders; fewer are started where fewer items are left.
        cpus_per_actor: CPU slots of an actor, which also is its number of decoding threads.
        gpus_per_actor: 0 encodes on the CPU; a fraction lets actors share a GPU.
        address: Ray cluster to join; None starts one on this machine.
        on_item: called in this process after every item.

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
    slots = math.ceil(num_actors * cpus_per_actor)
    with ray_session(address, min_cpus=slots) as ray:
        # Restarting is the pool's business: an actor must open its tokenizer before it works.
        actor_class = ray.remote(EncoderActor).options(
            num_cpus=cpus_per_actor, num_gpus=gpus_per_actor, max_restarts=0, max_task_retries=0
        )
        device, threads = "cuda" if gpus_per_actor else "cpu", max(1, int(cpus_per_actor))
        recipe = to_dict(config)
        pool = ActorPool(ray, lambda: actor_class.remote(recipe, device, threads), num_actors)
        try:
            with PrecomputeMetrics(config.output, num_actors) as metrics:
                counting = metrics.counting(on_item)
                run = PrecomputeRun(storage, pool.spec(), config.max_bad_samples, counting)
                metrics.expect(run.spec.num_rows)
                for items in run.rounds():
                    for result in pool.make(items):
                        run.done(result)
                        metrics.item(result, pool.restarts)
                return run.finish(pool.restarts)
        finally:
            pool.close()


def _useful_actors(storage: Storage, spec: TokenSpec, num_actors: int) -> int:
    pending = pending_items(storage, plan_items(spec.num_samples, spec.samples_per_shard))
    return max(1, min(num_actors, len(pending)))


class EncoderActor:
    """What runs in an actor: one encoder, opened by the first call so that its errors arrive."""

    def __init__(self, recipe: dict[str, Any], device: str, decode_threads: int) -> None:
        self._config = PrecomputeConfig.model_validate(recipe)
        self._device, self._decode_threads = device, decode_threads
        self._encoder: ItemEncoder | None = None

    def open(self) -> TokenSpec:
        """Load source and tokenizer; what this machine would make."""
        self._encoder = ItemEncoder(self._config, self._device, self._decode_threads)
        self._storage = open_storage(self._config.output)
        return self._encoder.spec

    def make(self, item: WorkItem) -> ItemResult:
        """Encode and publish."""
        assert self._encoder is not None
        return self._encoder.make(item, self._storage)


class ActorPool:
    """Actors with `open() -> TokenSpec` and `make(item)`; the lost are replaced.

    Attributes:
        restarts: actors replaced so far.
    """

    def __init__(self, ray: Any, start_actor: Callable[[], Any], size: int) -> None:
        self.restarts = 0
        self._ray, self._start_actor, self._size = ray, start_actor, size
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, WorkItem | None]] = {}
        """Actor and item of every call; no item while the actor opens."""
        self._spec: TokenSpec | None = None
        self._deaths = Counter[int]()
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
            while waiting and self._idle:
                actor, item = self._idle.pop(), waiting.popleft()
                self._running[actor.make.remote(item)] = (actor, item)
            for outcome in self._wait():
                if isinstance(outcome, WorkItem):
                    waiting.appendleft(outcome)
                else:
                    left -= 1
                    yield outcome

    def close(self) -> None:
        """End all actors."""
        for actor in [*self._idle, *(actor for actor, _ in self._running.values())]:
            self._ray.kill(actor)

    def _open_actor(self) -> None:
        actor = self._start_actor()
        self._running[actor.open.remote()] = (actor, None)

    def _wait(self) -> Iterator[ItemResult | WorkItem]:
        """Results, and items whose actor was lost; possibly none after a while."""
        ready, _ = self._ray.wait(list(self._running), timeout=_REMIND_SECONDS)
        if not ready and self._spec is None:
            logger.warning(
                "no actor could start for %.0f s; does the cluster have their CPUs and GPUs free?",
                _REMIND_SECONDS,
            )
        for call in ready:
            outcome = self._settle(call)
            if outcome is not None:
                yield outcome

    def _settle(self, call: Any) -> ItemResult | WorkItem | None:
        """What came of a finished call; None of one that opened or lost an idle actor."""
        from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

        actor, item = self._running[call]
        try:
            value = self._ray.get(call)
        except (RayActorError, OutOfMemoryError) as error:
            del self._running[call]
            self._replace(actor, item, error)
            return item
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        del self._running[call]
        self._idle.append(actor)
        if item is None:
            self._opened(value)
            return None
        return value

    def _opened(self, spec: TokenSpec) -> None:
        self._deaths_while_opening = 0
        if self._spec is None:
            self._spec = spec
        elif differences := self._spec.differences(spec):
            raise UserError(
                f"actors on different machines would make different tokens"
                f" ({'; '.join(differences)}); use machines of one kind"
            )

    def _replace(self, actor: Any, item: WorkItem | None, error: Exception) -> None:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("an encoder was lost (%s) and is replaced", reason)
        self._ray.kill(actor)  # it may only be unreachable
        if item is None:
            self._deaths_while_opening += 1
            if self._deaths_while_opening >= MAX_DEATHS_WHILE_OPENING * self._size:
                raise UserError(
                    f"{self._deaths_while_opening} encoders in a row died while opening"
                    f" (the last: {reason}); give them more memory or look into Ray's logs"
                )
        else:
            self._deaths[item.index] += 1
            if self._deaths[item.index] >= MAX_DEATHS_PER_ITEM:
                last = item.first_sample + item.num_samples - 1
                raise UserError(
                    f"images {item.first_sample} to {last} ended their encoder"
                    f" {MAX_DEATHS_PER_ITEM} times (the last: {reason}); give actors more memory,"
                    " lower batch_size or look into Ray's logs"
                )
        self.restarts += 1
        self._open_actor()
