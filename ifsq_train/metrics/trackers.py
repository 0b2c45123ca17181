"""Where a run's numbers go besides its own log: trackers, shipped ones and those of plug-ins.

A tracker works in a thread of its own, so a slow one does not hold up a step, and one that fails is
left out. What is handed in while it is too far behind is dropped, and the log says so.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ifsq_train.metrics.tracker import TrackedRun, Tracker
from ifsq_train.metrics.tracking import shipped_tracker
from ifsq_train.plugins.kinds import TrackerKind
from ifsq_train.plugins.registry import find, names, unknown_kind

logger = logging.getLogger(__name__)

Open = Callable[[Any, TrackedRun], Tracker]
"""See `ifsq_train.plugins.TrackerKind.open`."""
_WAITING = 1000
"""Calls that may wait for a tracker before more are dropped."""
_CLOSE_SECONDS = 10.0


class Trackers:
    """All trackers of a run; no call waits or raises.

    Args:
        configs: entries of the recipe's `trackers`.
        run: the run.

    Raises:
        UserError: a kind nobody knows, or whose library is not installed.
    """

    def __init__(self, configs: Sequence[Any], run: TrackedRun) -> None:
        opening = [(config, _opening(config.kind)) for config in configs]
        self._workers = [_Worker(config, opens, run) for config, opens in opening]

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


def _opening(name: str) -> Open:
    shipped = shipped_tracker(name)
    if shipped is not None:
        return shipped
    kind = find("ifsq.trackers", name)
    if not isinstance(kind, TrackerKind):
        raise unknown_kind("tracker", name, names("ifsq.trackers"))
    return kind.open


class _Worker:
    """One tracker and the thread it works in."""

    def __init__(self, config: Any, opens: Open, run: TrackedRun) -> None:
        self._name, self._dropped, self._failed = config.kind, 0, threading.Event()
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(
            target=self._work, args=(config, opens, run), name=f"tracker {self._name}", daemon=True
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

    def _work(self, config: Any, opens: Open, run: TrackedRun) -> None:
        try:
            tracker = opens(config, run)
            while (call := self._calls.get()) is not None:
                call(tracker)
            tracker.close()
        except Exception:
            logger.warning("tracker %s failed and is left out", self._name, exc_info=True)
            self._failed.set()
