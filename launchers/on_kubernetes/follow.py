"""Watching a job to its end: state changes, output, and a verdict.

Three threads read from the API server; only the caller's thread speaks. A thread that writes to a
pipe while the interpreter ends would abort the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.jobs.state import FAILED, GONE, QUEUED, RETRYING, STARTING, JobState
from launchers.jobs.verdict import JobFailed, failure_text
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.logs import JobLogFollower

REASON_SECONDS = 5.0
"""How often the cluster is asked why a job waits."""
_SHOWN_REASONS = 5
_LAST_OUTPUT_SECONDS = 10.0


def follow_job(cluster: KubernetesCluster, name: str, say: Callable[[str], None]) -> None:
    """Show a job's states and output until it has finished.

    Args:
        cluster: where the job is.
        name: of the job.
        say: called with every line for the user, always from this thread.

    Raises:
        JobFailed: it failed or was deleted.
        UserError: access is denied, or the API server stays away.
        KeyboardInterrupt: the user detaches; the job goes on.
    """
    follower = _Follower(cluster, name)
    try:
        state = follower.run(say)
    finally:
        follower.stop()
    if follower.log.denied is not None:
        say(f"[{name}] its output cannot be shown: {follower.log.denied}")
    if state.phase == GONE:
        raise JobFailed(f"job '{name}' was deleted before it finished")
    if state.phase == FAILED:
        raise JobFailed(failure_text(state, follower.log.last_lines))


class _Follower:
    """The reading threads and what they found, in the order it was found."""

    def __init__(self, cluster: KubernetesCluster, name: str) -> None:
        self._cluster, self._name = cluster, name
        self._found: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._stopped, self._waits = threading.Event(), threading.Event()
        self.log = JobLogFollower(cluster, name, lambda line: self._found.put(("line", line)))

    def run(self, say: Callable[[str], None]) -> JobState:
        """Say everything until the job has finished; returns its last state."""
        self._waits.set()
        for act in (self._watch, self._ask_for_reasons):
            threading.Thread(target=act, daemon=True).start()
        self.log.start()
        state, shown = JobState(self._name, STARTING), ""
        while True:
            kind, value = self._found.get()
            if kind == "line":
                say(value)
            elif kind == "note":
                say(f"[{self._name}] {value}")
            elif kind == "error":
                raise value
            elif kind == "end":
                break
            else:
                state = value
                waits = state.phase in (QUEUED, STARTING, RETRYING)
                (self._waits.set if waits else self._waits.clear)()
                if state.line() != shown:
                    shown = state.line()
                    self._say_line_of_state(say, state, shown)
        return state

    def _say_line_of_state(self, say: Callable[[str], None], state: JobState, text: str) -> None:
        if state.finished:
            # What the job said comes before the word that it has ended.
            self.log.finish(_LAST_OUTPUT_SECONDS)
            self._drain(say)
        say(f"[{self._name}] {text}")

    def _drain(self, say: Callable[[str], None]) -> None:
        kept = []
        while not self._found.empty():
            kind, value = self._found.get()
            if kind == "line":
                say(value)
            else:
                kept.append((kind, value))
        for found in kept:
            self._found.put(found)

    def stop(self) -> None:
        """End the threads as soon as they notice; none of them speaks any more."""
        self._stopped.set()
        self._waits.set()
        self.log.finish(0.0)

    def _watch(self) -> None:
        trouble = lambda text: self._found.put(("note", text))  # noqa: E731
        try:
            for state in self._cluster.watch(self._name, on_trouble=trouble):
                self._found.put(("state", state))
        except Exception as error:
            self._found.put(("error", error))
            return
        self._found.put(("end", None))

    def _ask_for_reasons(self) -> None:
        """Say each reason once, for as long as the job waits."""
        said = set[tuple[str, str, str]]()
        pause = 1.0
        while not self._stopped.wait(pause):
            pause = REASON_SECONDS
            self._waits.wait()
            if self._stopped.is_set():
                return
            for reason in reversed(self._reasons()):
                if reason.key not in said and self._waits.is_set():
                    said.add(reason.key)
                    self._found.put(("note", f"  {reason.line()}"))

    def _reasons(self) -> list[Any]:
        from launchers.on_kubernetes.reasons import waiting_reasons

        try:
            job = self._cluster.reach(self._name, lambda: self._cluster.fetch(self._name))
            return waiting_reasons(self._cluster, job)[:_SHOWN_REASONS] if job else []
        except (ConnectionLost, UserError):
            return []
