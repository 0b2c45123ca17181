"""Goodput: which part of the time since submission went into steps that count."""

from __future__ import annotations

import os
import statistics
import time
from collections import deque
from pathlib import Path

from ifsq_train.metrics.jsonl import read_jsonl

SUBMITTED_VARIABLE = "IFSQ_SUBMITTED"
"""Unix time of the submission, set by `ifsq submit`; waiting in a queue counts against goodput."""

HANG_FACTOR = 3.0


def _submitted() -> float | None:
    try:
        return float(os.environ.get(SUBMITTED_VARIABLE) or "")
    except ValueError:
        return None


class Goodput:
    """Useful time of a run over all its starts.

    Useful is the time between logged steps without what was spent on waiting for data and on
    checkpoints, and at most `HANG_FACTOR` times the usual: the rest is a hang. What steps took that
    a restart has to repeat is forgotten, because the log is cut to the checkpoint resumed from.

    Attributes:
        useful_seconds: so far.
    """

    def __init__(self, log: Path, starts: Path) -> None:
        """Take over what earlier starts achieved.

        Args:
            log: ``metrics.jsonl``, already cut to the step resumed from.
            starts: ``starts.jsonl``, this start included.
        """
        records = read_jsonl(log)
        useful = records[-1].get("useful_seconds") if records else None
        self.useful_seconds = float(useful) if isinstance(useful, int | float) else 0.0
        times = [record.get("wall_time") for record in read_jsonl(starts)]
        first = next((float(t) for t in times if isinstance(t, int | float)), time.time())
        self._submitted = min(_submitted() or first, first)
        self._idle_seconds = 0.0
        self._recent: deque[float] = deque(maxlen=50)

    def idle(self, seconds: float) -> None:
        """Count time that was not computing: waiting for a batch, saving a checkpoint."""
        self._idle_seconds += seconds

    def add(self, elapsed_seconds: float, steps: int) -> None:
        """Count the time since the previous call, in which `steps` steps were done, without what
        was idle in it."""
        seconds = max(0.0, elapsed_seconds - self._idle_seconds)
        self._idle_seconds = 0.0
        if steps <= 0:
            return
        usual = statistics.median(self._recent) if self._recent else seconds / steps
        self._recent.append(seconds / steps)
        self.useful_seconds += min(seconds, HANG_FACTOR * usual * steps)

    @property
    def ratio(self) -> float:
        """Useful time over time since submission, 0 to 1."""
        return min(1.0, self.useful_seconds / max(time.time() - self._submitted, 1e-9))
