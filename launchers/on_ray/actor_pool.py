"""A pool of Ray actors that works through items and replaces actors that die."""

from __future__ import annotations

import logging
import queue
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.work_items import WorkItem
from ifsq_train.precompute.progress import (
    ItemResult,
)
from launchers.on_ray.encoder_actors import ITEMS_PER_ENCODER
from launchers.on_ray.errors import plain_result

logger = logging.getLogger(__name__)

MAX_DEATHS_PER_ITEM = 3
"""An item that ends its actor this often is to blame itself."""


MAX_DEATHS_WHILE_OPENING = 3
"""In a row, per actor of the pool."""


_REMIND_SECONDS = 30.0


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
            value = plain_result(self._ray, call)
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
