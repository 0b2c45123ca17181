"""Watching a job to its end: state changes, output, and a verdict."""

from __future__ import annotations

from collections.abc import Callable

from data_pipelines.errors import UserError
from launchers.jobs.state import FAILED, GONE, QUEUED, STARTING, JobState
from launchers.jobs.verdict import JobFailed, failure_text
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.logs import JobLogFollower


def follow_job(cluster: KubernetesCluster, name: str, say: Callable[[str], None]) -> None:
    """Show a job's states and output until it has finished.

    Args:
        cluster: where the job is.
        name: of the job.
        say: called with every line for the user.

    Raises:
        JobFailed: it failed or was deleted.
        UserError: access is denied, or the API server stays away.
        KeyboardInterrupt: the user detaches; the job goes on.
    """
    follower = JobLogFollower(cluster, name, say)
    follower.start()
    state, shown, warned = JobState(name, STARTING), "", set[str]()
    try:
        for state in cluster.watch(name, on_trouble=lambda text: say(f"[{name}] {text}")):
            if state.line() != shown:
                shown = state.line()
                say(f"[{name}] {shown}")
            if state.phase in (QUEUED, STARTING):
                for warning in _warnings(cluster, name):
                    if warning not in warned:
                        say(f"[{name}]   {warning}")
                    warned.add(warning)
    finally:
        follower.finish(10.0 if state.finished else 0.0)
    if follower.denied is not None:
        say(f"[{name}] its output cannot be shown: {follower.denied}")
    if state.phase == GONE:
        raise JobFailed(f"job '{name}' was deleted before it finished")
    if state.phase == FAILED:
        raise JobFailed(failure_text(state, follower.last_lines))


def _warnings(cluster: KubernetesCluster, name: str) -> list[str]:
    """Events are a help only: that they cannot be read must not end the watch."""
    from launchers.on_kubernetes.cluster import ConnectionLost

    try:
        return cluster.warnings(name)[-3:]
    except (ConnectionLost, UserError):
        return []
