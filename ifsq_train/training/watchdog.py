"""A step that does not end: who hangs, and where.

When one rank stands still, all the others wait for it in a collective and look the same from
outside. Each worker therefore notes where it is; when a step takes too long, each writes down its
place and its stack, and the rank that is behind the others is named.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data_pipelines.documents import checked, read_json
from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically

EXIT_CODE = 70
_COMPARE_SECONDS = 3.0
_PHASES = ("data", "compute", "log", "save")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """Where a worker stood when its time was over."""

    rank: int
    step: int
    phase: str
    waits: bool
    """Its main thread is inside torch's communication or backward pass, as if for others."""
    stack: str

    @property
    def progress(self) -> tuple[int, int, bool]:
        """Orders workers: the least is furthest behind."""
        return self.step, _PHASES.index(self.phase), self.waits


class Watchdog:
    """Ends the process when `beat` has not been called for `timeout_seconds`.

    Args:
        folder: the run's folder; places are compared through ``hangs/`` in it.
        attempt: this start of the run.
        rank, world_size: this worker's place.
        timeout_seconds: None watches nothing.
        on_hang: called with (message, stack of the rank to blame) before the process ends.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: str,
        rank: int,
        world_size: int,
        timeout_seconds: float | None,
        on_hang: Callable[[str, str], None],
    ) -> None:
        self._folder = folder / "hangs" / attempt
        self._rank, self._world_size = rank, world_size
        self._timeout, self._on_hang = timeout_seconds, on_hang
        self._watched = threading.get_ident()
        self._step, self._phase, self._last = 0, "data", time.monotonic()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def beat(self, step: int, phase: str) -> None:
        """The worker enters a phase of a step."""
        self._step, self._phase, self._last = step, phase, time.monotonic()

    def __enter__(self) -> Watchdog:
        self._watched = threading.get_ident()
        self._last = time.monotonic()
        if self._timeout is not None:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        assert self._timeout is not None
        while not self._stop.wait(min(1.0, self._timeout / 4)):
            if time.monotonic() - self._last > self._timeout:
                self._end()

    def _end(self) -> None:
        """Write down the place, compare, say who hangs, leave."""
        own = self._place()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{self._rank:05d}.json"
        write_atomically(path, json.dumps(asdict(own)).encode())
        # The others began to wait at most a moment later than this one.
        self._stop.wait(_COMPARE_SECONDS)
        places = self._read_places()
        message = blame(places, self._world_size, self._timeout or 0.0)
        first = min(places, key=lambda place: place.progress)
        logger.error("%s\nstack of rank %d:\n%s", message, first.rank, first.stack)
        sys.stderr.write(f"{message}\nstack of rank {first.rank}:\n{first.stack}\n")
        sys.stderr.flush()
        self._on_hang(message, first.stack)
        os._exit(EXIT_CODE)

    def _place(self) -> Place:
        frame = sys._current_frames()[self._watched]
        stack = traceback.extract_stack(frame)
        inside = ("torch/distributed/", "torch/autograd/", "deepspeed/comm/")
        waits = any(part in entry.filename for part in inside for entry in stack[-3:])
        return Place(
            self._rank, self._step, self._phase, waits, "".join(traceback.format_list(stack))
        )

    def _read_places(self) -> list[Place]:
        found = [_place_in(path) for path in self._folder.glob("rank-*.json")]
        return [place for place in found if place is not None]


_PLACE: TypeAdapter[Place] = TypeAdapter(Place)


def _place_in(path: Path) -> Place | None:
    """What a worker left; None where it cannot be read: a hang is reported all the same."""
    try:
        place = checked(_PLACE, read_json(path), str(path))
    except UserError:
        return None
    return place if place.phase in _PHASES else None


def blame(places: list[Place], world_size: int, timeout_seconds: float) -> str:
    """One line: which rank the others waited for, as far as their places tell."""
    silent = sorted(set(range(world_size)) - {place.rank for place in places})
    limit = f"no step ended within {timeout_seconds:g} s (watchdog_seconds)"
    if silent:
        names = ", ".join(map(str, silent))
        return f"{limit}: rank {names} did not answer: dead, stopped or cut off"
    least = min(place.progress for place in places)
    behind = [place for place in places if place.progress == least]
    first = behind[0]
    if len(behind) == len(places):
        return f"{limit}: all ranks stand at step {first.step} in '{first.phase}'"
    names = ", ".join(str(place.rank) for place in sorted(behind, key=lambda place: place.rank))
    return f"{limit}: rank {names} hangs at step {first.step} in '{first.phase}'"
