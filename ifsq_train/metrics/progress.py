"""One line that says how far a job is, how fast, and how long it has to go."""

from __future__ import annotations

import math
import shutil
import sys
import time
from collections import deque
from typing import TextIO

WINDOW_SECONDS = 30.0
"""The rate is the mean over about this much recent time."""
PLAIN_EVERY_SECONDS = 5.0
"""Where the stream is not a terminal, lines are at least this far apart."""


class ProgressLine:
    """Shows ``demo  120/600 steps  4.1 steps/s  eta 1m57s  loss 0.0312`` while a job runs.

    On a terminal the line is updated in place; elsewhere (a file, a pipe) a line is written at
    most every five seconds and once at the end.
    """

    def __init__(self, total: int, unit: str, label: str, stream: TextIO | None = None) -> None:
        """Show nothing yet.

        Args:
            total: value of `done` at the end.
            unit: what is counted, plural.
            label: first word of the line.
            stream: where to write; standard error when not given.
        """
        self._total = total
        self._unit = unit
        self._label = label
        self._stream = stream if stream is not None else sys.stderr
        self._in_place = self._stream.isatty()
        self._points: deque[tuple[float, int]] = deque()
        self._line = ""
        self._shown = ""
        self._shown_at = -math.inf

    def update(self, done: int, **shown: float) -> None:
        """Say how much is done, counted from the job's very start (a resumed one begins above 0).

        Args:
            done: units done so far.
            shown: numbers to show after the rate, by name.
        """
        now = time.monotonic()
        self._remember(now, done)
        self._line = self._text(done, shown)
        if self._in_place or now - self._shown_at >= PLAIN_EVERY_SECONDS:
            self._show(now)

    def close(self) -> None:
        """Show the last state, if any, and end the line."""
        if self._line and self._line != self._shown:
            self._show(time.monotonic())
        if self._shown and self._in_place:
            self._stream.write("\n")
            self._stream.flush()
        self._line = self._shown = ""

    def _remember(self, now: float, done: int) -> None:
        points = self._points
        if points and done < points[-1][1]:
            points.clear()  # the job went back to a checkpoint
        if not points or done > points[-1][1]:
            points.append((now, done))
        while len(points) > 2 and now - points[1][0] >= WINDOW_SECONDS:
            points.popleft()

    def _rate(self) -> float | None:
        """Units per second over the window; None before there are two points."""
        (began, first), (ended, last) = self._points[0], self._points[-1]
        return (last - first) / (ended - began) if ended > began else None

    def _text(self, done: int, shown: dict[str, float]) -> str:
        parts = [self._label, f"{done}/{self._total} {self._unit}"]
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:.3g} {self._unit}/s")
            if done < self._total:
                parts.append(f"eta {format_duration((self._total - done) / rate)}")
        parts += [
            f"{name} {value if isinstance(value, int) else format(value, '.3g')}"
            for name, value in shown.items()
        ]
        return "  ".join(parts)

    def _show(self, now: float) -> None:
        if self._in_place:
            width = shutil.get_terminal_size().columns - 1
            # A line that wraps could not be overwritten, so it is cut to the terminal.
            self._stream.write("\r" + self._line[:width] + "\x1b[K")
        elif self._line != self._shown:
            self._stream.write(self._line + "\n")
        self._stream.flush()
        self._shown = self._line
        self._shown_at = now


def format_duration(seconds: float) -> str:
    """Seconds as ``42s``, ``1m57s``, ``3h05m`` or ``2d04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"
