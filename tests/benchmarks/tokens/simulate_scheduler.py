"""The precompute's own scheduler (`ActorPool`) with 10,000 actors that exist in simulated time.

    python -m tests.benchmarks.tokens.simulate_scheduler

Everything of the driver is real but Ray: hand-outs, results, lost actors, replacements. Actors are
events on a heap: an item takes a lognormal time, an actor dies at a constant rate and its
replacement takes a minute to open. Reported: how much of one CPU core the driver needs, and what
failures cost.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ray.exceptions import RayActorError

from data_pipelines.work_items import WorkItem
from ifsq_train.precompute.progress import ItemResult
from launchers.on_ray.actor_pool import ActorPool, PoolWords


@dataclass(eq=False)
class Call:
    """Stands for an ObjectRef."""

    actor: Actor
    item: WorkItem | None
    callback: Callable[[Any], None] | None = None
    value: Any = None

    def future(self) -> Call:
        return self

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        self.callback = callback


@dataclass(eq=False)
class Actor:
    """One item after the other, in the order they came."""

    world: World
    calls: list[Call] = field(default_factory=list)
    busy_until: float = 0.0
    dead: bool = False

    @property
    def open(self) -> Any:
        return _Method(self, "open")

    @property
    def make(self) -> Any:
        return _Method(self, "make")


@dataclass
class _Method:
    actor: Actor
    name: str

    def remote(self, item: WorkItem | None = None) -> Call:
        return self.actor.world.begin(self.actor, item)


@dataclass
class World:
    """Time, and what will happen; plays the part of the module `ray`."""

    options: argparse.Namespace
    rng: random.Random
    now: float = 0.0
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    finished: list[Call] = field(default_factory=list)
    busy_seconds: float = 0.0
    wasted_seconds: float = 0.0
    started: int = 0
    own_seconds: float = 0.0
    """CPU time of the simulation itself."""

    def start_actor(self) -> Actor:
        actor = Actor(self)
        self.started += 1
        failures_per_second = self.options.failures_per_hour / 3600
        self.at(self.now + self.rng.expovariate(failures_per_second), lambda: self.die(actor))
        return actor

    def begin(self, actor: Actor, item: WorkItem | None) -> Call:
        call = Call(actor, item)
        actor.calls.append(call)
        if item is None:
            seconds = self.rng.uniform(0.5, 1.5) * self.options.open_seconds
        else:
            seconds = self.options.item_seconds * self.rng.lognormvariate(0, 0.1)
        begun = max(self.now, actor.busy_until)
        actor.busy_until = begun + seconds
        self.at(actor.busy_until, lambda: self.done(call, begun))
        return call

    def done(self, call: Call, begun: float) -> None:
        if call.actor.dead:
            return
        call.actor.calls.remove(call)
        call.value = "spec" if call.item is None else ItemResult(call.item, 1, ())
        if call.item is not None:
            self.busy_seconds += self.now - begun
        self.tell(call)

    def die(self, actor: Actor) -> None:
        if actor.dead:
            return
        actor.dead = True
        for call in actor.calls:
            call.value = RayActorError()
            self.tell(call)

    def tell(self, call: Call) -> None:
        assert call.callback is not None
        call.callback(call)

    def at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, len(self.events) + self.rng.getrandbits(40), event))

    def get(self, call: Call) -> Any:
        if isinstance(call.value, Exception):
            raise call.value
        return call.value

    def kill(self, actor: Actor) -> None:
        actor.dead = True


class Simulated(ActorPool):
    """The real pool; waiting lets simulated time pass."""

    def _next_finished(self) -> Any:
        began = time.process_time()
        world: World = self._ray
        while self._finished.empty():
            world.now, _, event = heapq.heappop(world.events)
            event()
        world.own_seconds += time.process_time() - began
        return self._finished.get()


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--actors", type=int, default=10_000)
    options.add_argument("--items", type=int, default=500_000)
    options.add_argument("--item-seconds", type=float, default=40.0)
    options.add_argument("--open-seconds", type=float, default=60.0)
    options.add_argument("--failures-per-hour", type=float, default=0.01, help="of each actor")
    chosen = options.parse_args()
    logging.disable(logging.WARNING)
    world = World(chosen, random.Random(0))
    began = time.process_time()
    words = PoolWords[None, WorkItem]("encoder", lambda item: f"item {item.index}")
    pool = Simulated(world, world.start_actor, chosen.actors, words)
    results = sum(1 for _ in pool.make([WorkItem(i, i, 1) for i in range(chosen.items)]))
    driver = time.process_time() - began - world.own_seconds
    assert results == chosen.items
    ideal = chosen.items * chosen.item_seconds / chosen.actors
    print(
        f"{chosen.items} items of {chosen.item_seconds:.0f} s on {chosen.actors} actors,", end=" "
    )
    print(f"{chosen.failures_per_hour:.0%} of the actors lost per hour")
    print(f"simulated time {world.now / 3600:.2f} h, without start and loss {ideal / 3600:.2f} h")
    print(f"actors busy with items that count {world.busy_seconds / world.now / chosen.actors:.1%}")
    print(f"actors replaced {pool.restarts}, items given out again {pool.retries}")
    print(f"driver: {driver:.1f} CPU-s, {driver / chosen.items * 1e6:.0f} us per item, ", end="")
    print(
        f"{driver / world.now:.2%} of one core; {chosen.items / world.now:.0f} items/s were needed,"
    )
    print(f"{chosen.items / driver:.0f} items/s is the most this pool could hand out")


if __name__ == "__main__":
    main()
