"""Where a run's numbers go besides its own log: trackers that plug-ins add.

A tracker works in a thread of its own, so a slow one does not hold up a step, and one that fails is
left out. What is handed in while it is too far behind is dropped, and the log says so.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ifsq_train.plugins.kinds import TrackerKind
from ifsq_train.plugins.registry import find, names, unknown_kind

logger = logging.getLogger(__name__)

_WAITING = 1000
"""Calls that may wait for a tracker before more are dropped."""
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class TrackedRun:
    """The run a tracker is opened for.

    Attributes:
        name: of the recipe.
        folder: of the run; a tracker may keep an id there, to go on with after a restart.
        recipe: JSON-able.
    """

    name: str
    folder: Path
    recipe: Mapping[str, Any]


class Tracker(Protocol):
    """Receives what rank 0 of a run reports; any of its methods may raise."""

    def resume(self, step: int) -> None:
        """The run goes on after `step` optimizer steps; what was reported beyond is void."""
        ...

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step by name."""
        ...

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """Images uint8 [N, H, W, 3]."""
        ...

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """Counts int64 [K] between edges float64 [K + 1]."""
        ...

    def close(self) -> None:
        """Nothing more comes."""
        ...


class Trackers:
    """All trackers of a run; no call waits or raises.

    Args:
        configs: entries of the recipe's `trackers`.
        run: the run.

    Raises:
        UserError: a kind nobody knows.
    """

    def __init__(self, configs: Sequence[Any], run: TrackedRun) -> None:
        self._workers = [_Worker(config, _kind(config.kind), run) for config in configs]

    def resume(self, step: int) -> None:
        """Tell every tracker that the run goes on."""
        self._all(lambda tracker: tracker.resume(step))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Hand the scalars to every tracker."""
        kept = dict(values)
        self._all(lambda tracker: tracker.scalars(step, kept))

    def images(self, step: int, name: str, images: NDArray[np.uint8]) -> None:
        """Hand the images to every tracker."""
        self._all(lambda tracker: tracker.images(step, name, images))

    def histogram(
        self, step: int, name: str, counts: NDArray[np.int64], edges: NDArray[np.float64]
    ) -> None:
        """Hand the histogram to every tracker."""
        self._all(lambda tracker: tracker.histogram(step, name, counts, edges))

    def close(self) -> None:
        """Let every tracker finish, for a few seconds."""
        for worker in self._workers:
            worker.close()

    def _all(self, call: Callable[[Tracker], None]) -> None:
        for worker in self._workers:
            worker.hand_in(call)


def _kind(name: str) -> TrackerKind:
    kind = find("ifsq.trackers", name)
    if not isinstance(kind, TrackerKind):
        raise unknown_kind("tracker", name, names("ifsq.trackers"))
    return kind


class _Worker:
    """One tracker and the thread it works in."""

    def __init__(self, config: Any, kind: TrackerKind, run: TrackedRun) -> None:
        self._name, self._dropped, self._failed = config.kind, 0, threading.Event()
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(
            target=self._work, args=(config, kind, run), name=f"tracker {self._name}", daemon=True
        )
        self._thread.start()

    def hand_in(self, call: Callable[[Tracker], None]) -> None:
        if self._failed.is_set():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            if not self._dropped:
                logger.warning("tracker %s is far behind; reports are dropped", self._name)
            self._dropped += 1

    def close(self) -> None:
        if self._failed.is_set():
            return
        try:
            self._calls.put(None, timeout=_CLOSE_SECONDS)
        except queue.Full:
            return
        self._thread.join(_CLOSE_SECONDS)

    def _work(self, config: Any, kind: TrackerKind, run: TrackedRun) -> None:
        try:
            tracker: Tracker = kind.open(config, run)
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception:
            logger.warning("tracker %s failed and is left out", self._name, exc_info=True)
            self._failed.set()
