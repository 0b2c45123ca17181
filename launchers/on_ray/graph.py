"""A graph of tasks on Ray: each starts when its inputs are done and there is room for it.

Where trainings need several workers at once, the driver holds back what would not fit, so that
they never wait for each other half started. Where every task is on its own, Ray gets twice what
there are slots for, so that a slot that falls free has work without asking the driver. A task that
fails takes with it only those that need it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from launchers.on_ray.cluster import ray_session

POLL_SECONDS = 5.0
"""How often the size of the cluster is asked for, at most."""
_RETRIES = 2
"""Further attempts for a task whose process or node is lost; an exception is final."""


@dataclass(frozen=True)
class Node:
    """One task.

    Attributes:
        key: names it.
        inputs: keys of the nodes that must be done before.
        cpus, gpus: slots the task itself takes.
        more_cpus, more_gpus: slots that what it starts will take, such as a training's workers.
    """

    key: str
    inputs: tuple[str, ...] = ()
    cpus: float = 1
    gpus: float = 0
    more_cpus: float = 0
    more_gpus: float = 0

    @property
    def is_group(self) -> bool:
        """Whether what it starts needs slots of its own."""
        return self.more_cpus > 0 or self.more_gpus > 0

    @property
    def needs(self) -> dict[str, float]:
        """All slots."""
        return {"CPU": self.cpus + self.more_cpus, "GPU": self.gpus + self.more_gpus}


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        key: of its node.
        error: None where it succeeded; otherwise what is wrong, in one or more lines.
        blocked: it was never started, because an input failed.
    """

    key: str
    error: str | None = None
    blocked: bool = False


def run_graph(
    nodes: Iterable[Node],
    work: Callable[..., None],
    arguments: Mapping[str, tuple[Any, ...]],
    shared: Any = None,
    *,
    address: str | None = None,
    on_start: Callable[[str], None] | None = None,
) -> Iterator[Outcome]:
    """Run every node once; yields how each ended, in the order they end.

    Args:
        nodes: the graph; inputs that are no nodes count as done.
        work: called in a Ray task as ``work(shared, *arguments[key])``; must be importable.
        arguments: by key.
        shared: given to every call, sent to each node of the cluster once.
        address: Ray cluster to join; None starts one on this machine.
        on_start: called in this process when a task is handed to Ray.

    Raises:
        UserError: no cluster answers at the address.
    """
    graph = {node.key: node for node in nodes}
    most = max((int(node.needs["CPU"] + 0.999) for node in graph.values()), default=1)
    with ray_session(address, min_cpus=most) as ray:
        run = _Run(ray, graph, ray.remote(_call), work, arguments, ray.put(shared))
        yield from run.outcomes(on_start)


def _call(work: Callable[..., None], shared: Any, arguments: tuple[Any, ...]) -> None:
    work(shared, *arguments)


@dataclass
class _Run:
    """The state of a graph that is being run."""

    ray: Any
    waiting: dict[str, Node]
    task: Any
    work: Callable[..., None]
    arguments: Mapping[str, tuple[Any, ...]]
    shared: Any
    running: dict[Any, Node] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    total: dict[str, float] = field(default_factory=dict)
    asked: float = -POLL_SECONDS

    def outcomes(self, on_start: Callable[[str], None] | None) -> Iterator[Outcome]:
        """See `run_graph`; what has become ready is started before the caller gets control."""
        ended: list[Outcome] = []
        while self.waiting or self.running or ended:
            ended += self._blocked()
            self._start(on_start)
            yield from ended
            ended = self._ended()

    def _ended(self) -> list[Outcome]:
        """All that have ended by now; waits for one."""
        references = list(self.running)
        if not references:
            return []
        ended, left = self.ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
        if ended and left:
            ended += self.ray.wait(left, num_returns=len(left), timeout=0)[0]
        return [self._outcome(reference) for reference in ended]

    def _outcome(self, reference: Any) -> Outcome:
        node, error = self.running.pop(reference), self._error(reference)
        if error is not None:
            self.failed.add(node.key)
        return Outcome(node.key, error)

    def _blocked(self) -> list[Outcome]:
        """Nodes that cannot be started any more, inputs before the nodes that need them."""
        blocked: list[Outcome] = []
        while found := [n for n in self.waiting.values() if self.failed.intersection(n.inputs)]:
            for node in found:
                del self.waiting[node.key]
                self.failed.add(node.key)
                blocked.append(Outcome(node.key, "an input failed", blocked=True))
        return blocked

    def _start(self, on_start: Callable[[str], None] | None) -> None:
        """Hand to Ray what is ready and has room."""
        open_keys = {*self.waiting, *(node.key for node in self.running.values())}
        ready = [n for n in self.waiting.values() if not open_keys.intersection(n.inputs)]
        if not ready:
            return
        room = self._room()
        for node in ready:
            fits = all(room[kind] + 1e-6 >= amount for kind, amount in node.needs.items())
            # A node larger than the cluster is Ray's to wait for: an autoscaler may add machines.
            if not fits and self.running:
                continue
            task = self.task.options(
                num_cpus=node.cpus, num_gpus=node.gpus, max_retries=_RETRIES, name=node.key
            )
            call = task.remote(self.work, self.shared, self.arguments[node.key])
            self.running[call] = self.waiting.pop(node.key)
            room = {kind: room[kind] - amount for kind, amount in node.needs.items()}
            if on_start is not None:
                on_start(node.key)

    def _room(self) -> dict[str, float]:
        """Slots that nothing handed to Ray needs; twice as many where no group has to fit in."""
        nodes = [*self.waiting.values(), *self.running.values()]
        times = 1 if any(node.is_group for node in nodes) else 2
        used = {"CPU": 0.0, "GPU": 0.0}
        for node in self.running.values():
            used = {kind: used[kind] + amount for kind, amount in node.needs.items()}
        slots = self._slots()
        return {kind: times * float(slots.get(kind, 0.0)) - used[kind] for kind in used}

    def _slots(self) -> dict[str, float]:
        """Of the cluster as it was at most five seconds ago."""
        now = time.monotonic()
        if now - self.asked >= POLL_SECONDS:
            self.total, self.asked = self.ray.cluster_resources(), now
        return self.total

    def _error(self, reference: Any) -> str | None:
        from ray.exceptions import RayError, RayTaskError

        try:
            self.ray.get(reference)
        except RayTaskError as error:
            cause = error.cause
            text = f"{type(cause).__name__}: {cause}" if cause is not None else str(error)
            return text.strip()
        except RayError as error:
            return f"{type(error).__name__}: {error}".strip()
        return None
