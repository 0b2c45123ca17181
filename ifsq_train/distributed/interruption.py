"""Leaving in order: SIGTERM, a preempted node, a group that is about to be resized.

One worker learns of it; all must save at the same step (``vote``).
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType


class Interruption(IntEnum):
    """What a worker was told; the highest of all workers wins."""

    NONE = 0
    SAVE = 1
    """Save now and go on: the workers may soon be replaced."""
    PREEMPTED = 2
    """Save now and fail: the launcher starts the workers again elsewhere."""
    STOP = 3
    """Save now and end: somebody asked for it."""


class Interrupted(Exception):
    """The run has saved its state and leaves before its last step.

    Attributes:
        step: optimizer steps done and saved.
        reason: why.
    """

    def __init__(self, step: int, reason: Interruption) -> None:
        super().__init__(f"{reason.name.lower()} at step {step}; state saved, run again to go on")
        self.step, self.reason = step, reason


class _Terminated:
    """Whether this process was sent SIGTERM."""

    flag = threading.Event()


def terminated() -> bool:
    """Whether SIGTERM arrived inside `catching_sigterm`."""
    return _Terminated.flag.is_set()


@contextmanager
def catching_sigterm() -> Iterator[None]:
    """Inside, a first SIGTERM only sets a flag; a second one ends the process as usual.

    Does nothing outside the main thread, where Python allows no signal handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(_number: int, _frame: FrameType | None) -> None:
        _Terminated.flag.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    _Terminated.flag.clear()
    signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
