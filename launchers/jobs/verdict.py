"""How a job ended, and the message that says so."""

from __future__ import annotations

import re
from collections.abc import Iterable

from launchers.jobs.state import JobState

_FAILURE = re.compile(r"(rank \d+ failed first|^error: )")


_SHOWN_LINES = 20


class JobFailed(Exception):
    """A job ended without success; the message says why."""


def failure_text(state: JobState, lines: Iterable[str]) -> str:
    """Why a job failed: the cluster's reason and the failing rank's last lines.

    Args:
        state: final state.
        lines: last lines of the job's output.
    """
    head = f"job '{state.name}' failed: {state.detail or 'the cluster gives no reason'}"
    return "\n".join([head, *(f"  {line}" for line in failure_lines(lines))])


def failure_lines(lines: Iterable[str]) -> list[str]:
    """The part of a failed job's output that says why.

    Args:
        lines: last lines of the job's output.
    """
    shown = list(lines)
    starts = [index for index, line in enumerate(shown) if _FAILURE.search(line)]
    shown = shown[starts[-1] :] if starts else shown[-_SHOWN_LINES:]
    if len(shown) > _SHOWN_LINES + 1:
        # First the line that names the rank, then the end of what it said.
        shown = [shown[0], "...", *shown[-_SHOWN_LINES:]]
    return shown
