"""Watching a job's state through restarts of the API server and lost connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from launchers.jobs.patience import ConnectionLost, Patience
from launchers.jobs.state import GONE, JobState
from launchers.on_kubernetes.state import rayjob_state

if TYPE_CHECKING:
    from launchers.on_kubernetes.cluster import KubernetesCluster

CONNECT_SECONDS = 5
WATCH_SECONDS = 60
"""A watch is renewed after this time, so that a dead connection is noticed."""
RETRY_SECONDS = 1.0


def watch_job(
    cluster: KubernetesCluster, name: str, on_trouble: Callable[[str], None]
) -> Iterator[JobState]:
    """States of a job until it has finished or is deleted: at every change, and at least once a
    minute, also the same again.

    Args:
        cluster: where the job is.
        name: of the job.
        on_trouble: told once when the server cannot be reached, and once when it is back.

    Raises:
        UserError: access is denied, or the server stays away too long.
    """
    patience = Patience(cluster.patience_seconds, f"ifsq status {name}")
    while True:
        try:
            for state in _watch_once(cluster, name):
                if patience.found():
                    on_trouble("the API server answers again")
                yield state
                if state.finished:
                    return
        except ConnectionLost as error:
            if patience.lost(error):
                on_trouble(f"the API server cannot be reached ({error}); the job goes on")
            time.sleep(RETRY_SECONDS)


def _watch_once(cluster: KubernetesCluster, name: str) -> Iterator[JobState]:
    """One list and one watch from there; ends when the server ends the watch."""
    from kubernetes import watch

    found = cluster.reach(name, lambda: cluster.fetch(name))
    if found is None:
        yield JobState(name, GONE)
        return
    yield rayjob_state(found)
    stream = watch.Watch().stream(
        cluster.objects.list_namespaced_custom_object,
        *cluster.place,
        field_selector=f"metadata.name={name}",
        resource_version=found["metadata"]["resourceVersion"],
        timeout_seconds=WATCH_SECONDS,
        _request_timeout=(CONNECT_SECONDS, WATCH_SECONDS + 15),
    )
    while True:
        event = cluster.reach(name, lambda: next(stream, None))
        if event is None:
            return
        state = rayjob_state(event["object"])
        if event["type"] == "DELETED" and not state.finished:
            state = JobState(name, GONE)
        yield state
