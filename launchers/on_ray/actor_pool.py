"""A pool of Ray actors that works through items and replaces actors that die.

The pool knows nothing of what actors make: encoders, samplers and image decoders all use it.
"""

from __future__ import annotations

import logging
import queue
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from data_pipelines.errors import UserError
from launchers.on_ray.errors import plain_result

logger = logging.getLogger(__name__)

ITEMS_PER_ACTOR = 2
"""Given to an actor at a time: one to work on, and the next, so that it never waits."""
MAX_DEATHS_PER_ITEM = 3
"""An item that ends its actor this often while the actor had no other is to blame itself."""
MAX_DEATHS_WHILE_OPENING = 3
"""In a row, per actor of the pool."""
_REMIND_SECONDS = 30.0

Opened = TypeVar("Opened")
Item = TypeVar("Item", bound=Hashable)
Result = TypeVar("Result")


def _no_differences(_first: Any, _other: Any) -> list[str]:
    return []


@dataclass(frozen=True)
class PoolWords(Generic[Opened, Item]):
    """What messages call the parts of a pool.

    Attributes:
        actor: one actor, such as ``encoder``.
        item: an item, as the beginning of a sentence, such as ``images 0 to 15``.
        remedy: what to do when actors die of an item.
        differences: how what two actors opened differs, one text per difference; actors whose
            results would differ must not work together.
    """

    actor: str
    item: Callable[[Item], str]
    remedy: str = "give actors more memory or look into Ray's logs"
    differences: Callable[[Opened, Opened], list[str]] = _no_differences


@dataclass(eq=False)
class _Actor(Generic[Item]):
    """An actor of the pool and the items it has been given."""

    handle: Any
    items: dict[Item, None] = field(default_factory=dict)
    opened: bool = False
    lost: bool = False


class ActorPool(Generic[Opened, Item, Result]):
    """Actors with ``open() -> Opened`` and ``make(item) -> Result``; lost actors are replaced.

    Each actor has up to `ITEMS_PER_ACTOR` items at a time. What an actor had when it was lost is
    given to others, from then on one at a time, so that an item which ends its actor is known.
    Ray reports every finished call, so an item costs the driver the same for any number of actors.
    Not for several threads at once.

    Args:
        ray: an initialised Ray.
        start_actor: starts an actor and returns its handle.
        size: number of actors.
        words: for messages.

    Attributes:
        restarts: actors replaced so far.
        retries: items given out again.
    """

    def __init__(
        self,
        ray: Any,
        start_actor: Callable[[], Any],
        size: int,
        words: PoolWords[Opened, Item],
    ) -> None:
        self.restarts = 0
        self.retries = 0
        self.size = size
        self._ray, self._start_actor, self._words = ray, start_actor, words
        self._actors: dict[_Actor[Item], None] = {}
        self._by_load: list[dict[_Actor[Item], None]] = [{} for _ in range(ITEMS_PER_ACTOR + 1)]
        """Opened actors by the number of their items."""
        self._calls: dict[Any, tuple[_Actor[Item], Item | None]] = {}
        """Actor and item of every call; no item while the actor opens."""
        self._waiting: deque[Item] = deque()
        self._finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._first: list[Opened] = []
        """What the first actor opened; empty until then."""
        self._suspects: Counter[Item] = Counter()
        """Deaths of actors by item: that had it among others, then that had it alone."""
        self._deaths_while_opening = 0
        for _ in range(size):
            self._open_actor()

    def opened(self) -> Opened:
        """What the actors opened; waits for the first of them.

        Raises:
            UserError: raised in an actor, or actors keep dying.
        """
        while not self._first:
            outcomes = list(self.finished())
            assert not outcomes, "nothing was handed out yet"
        return self._first[0]

    def make(self, items: Iterable[Item]) -> Iterator[Result]:
        """Results as they come, in any order.

        Raises:
            UserError: raised in an actor, or actors keep dying.
        """
        left = self.ask(items)
        while left:
            for _, result in self.finished():
                left -= 1
                yield result

    def ask(self, items: Iterable[Item]) -> int:
        """Have items made, after those asked for before; returns how many were given."""
        before = len(self._waiting)
        self._waiting.extend(items)
        count = len(self._waiting) - before
        self._hand_out()
        return count

    def forget(self, unwanted: Callable[[Item], bool]) -> set[Item]:
        """Drop items that no actor has been given yet; returns them."""
        dropped = {item for item in self._waiting if unwanted(item)}
        self._waiting = deque(item for item in self._waiting if item not in dropped)
        return dropped

    def finished(self) -> Iterator[tuple[Item, Result]]:
        """Wait for a call to finish: an item with its result, or nothing where none is ready.

        Raises:
            UserError: raised in an actor, or actors keep dying.
        """
        call = self._next_finished()
        if call is None:
            if not self._first:
                logger.warning(
                    "no %s could start for %.0f s; does the cluster have their CPUs and GPUs free?",
                    self._words.actor,
                    _REMIND_SECONDS,
                )
            return
        yield from self._settle(call)
        self._hand_out()

    def close(self) -> None:
        """End all actors."""
        for actor in self._actors:
            self._ray.kill(actor.handle)

    def _hand_out(self) -> None:
        """To the least busy first."""
        for load in range(ITEMS_PER_ACTOR):
            passed: list[_Actor[Item]] = []
            while self._waiting and self._by_load[load]:
                actor, _ = self._by_load[load].popitem()
                if self._may_join(actor, self._waiting[0]):
                    item = self._waiting.popleft()
                    actor.items[item] = None
                    self._by_load[load + 1][actor] = None
                    self._called(actor.handle.make.remote(item), actor, item)
                else:
                    passed.append(actor)
            self._by_load[load].update(dict.fromkeys(passed))

    def _may_join(self, actor: _Actor[Item], item: Item) -> bool:
        """A suspect works alone."""
        return not actor.items or not (
            self._suspects[item] or any(self._suspects[other] for other in actor.items)
        )

    def _open_actor(self) -> None:
        actor: _Actor[Item] = _Actor(self._start_actor())
        self._actors[actor] = None
        self._called(actor.handle.open.remote(), actor, None)

    def _called(self, call: Any, actor: _Actor[Item], item: Item | None) -> None:
        self._calls[call] = (actor, item)
        call.future().add_done_callback(lambda _: self._finished.put(call))

    def _next_finished(self) -> Any:
        """A finished call; None if there is none for a while."""
        try:
            return self._finished.get(timeout=_REMIND_SECONDS)
        except queue.Empty:
            return None

    def _settle(self, call: Any) -> Iterator[tuple[Item, Result]]:
        """What came of a finished call; nothing of one that opened or lost its actor."""
        from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError

        actor, item = self._calls[call]
        try:
            value = plain_result(self._ray, call)
        except (RayActorError, ObjectLostError, OutOfMemoryError) as error:
            del self._calls[call]
            if item is not None:
                self.retries += 1
                self._waiting.appendleft(item)
            self._lose(actor, error)
            return
        del self._calls[call]
        if item is None:
            self._opened(actor, value)
            return
        load = len(actor.items)
        del actor.items[item]
        if not actor.lost:  # it may have died since
            del self._by_load[load][actor]
            self._by_load[load - 1][actor] = None
        self._suspects.pop(item, None)
        yield item, value

    def _opened(self, actor: _Actor[Item], opened: Opened) -> None:
        actor.opened = True
        self._by_load[0][actor] = None
        self._deaths_while_opening = 0
        if not self._first:
            self._first.append(opened)
        elif differences := self._words.differences(self._first[0], opened):
            raise UserError(
                f"{self._words.actor}s on different machines would make different results"
                f" ({'; '.join(differences)}); use machines of one kind"
            )

    def _lose(self, actor: _Actor[Item], error: Exception) -> None:
        """Once per lost actor, whichever of its calls reports first: replace it."""
        if actor.lost:
            return
        actor.lost = True
        del self._actors[actor]
        self._by_load[len(actor.items)].pop(actor, None)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        logger.warning("%s lost, starting another: %s", self._words.actor, reason)
        self._ray.kill(actor.handle)  # it may only be unreachable
        self._blame(actor, reason)
        self.restarts += 1
        self._open_actor()

    def _blame(self, actor: _Actor[Item], reason: str) -> None:
        words = self._words
        if not actor.opened:
            self._deaths_while_opening += 1
            if self._deaths_while_opening >= MAX_DEATHS_WHILE_OPENING * self.size:
                raise UserError(
                    f"{self._deaths_while_opening} {words.actor}s in a row died while opening"
                    f" (the last: {reason}); give them more memory or look into Ray's logs"
                )
        alone = len(actor.items) == 1
        for item in actor.items:
            deaths = self._suspects[item] = self._suspects[item] + 1
            if alone and deaths >= MAX_DEATHS_PER_ITEM:
                raise UserError(
                    f"{words.item(item)} ended their {words.actor} {deaths} times (the last:"
                    f" {reason}); {words.remedy}"
                )
