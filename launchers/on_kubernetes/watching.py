"""Watching a job's state through restarts of the API server and lost connections."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipelines.errors import UserError
from launchers.jobs.state import GONE, JobState
from launchers.on_kubernetes.api_errors import ConnectionLost, Refused
from launchers.on_kubernetes.state import rayjob_state

if TYPE_CHECKING:
    from launchers.on_kubernetes.cluster import KubernetesCluster

CONNECT_SECONDS = 5
WATCH_SECONDS = 60
"""A watch is renewed after this time, so that a dead connection is noticed."""
RETRY_SECONDS = 1.0
REFUSAL_PATIENCE_SECONDS = 60.0
"""How long a refusal of what was granted before is taken for a server that is starting."""


@dataclass
class Patience:
    """How long the server has been away, and when that is too long.

    Args:
        limit_seconds: for an API server that does not answer.
    """

    limit_seconds: float
    since: float | None = None

    def lost(self, name: str, error: ConnectionLost) -> bool:
        """Note a lost connection; True if it is the first after good times.

        Raises:
            UserError: it has been away too long, or access is denied for good.
        """
        first = self.since is None
        if self.since is None:
            self.since = time.monotonic()
        away = time.monotonic() - self.since
        if isinstance(error, Refused) and away > min(self.limit_seconds, REFUSAL_PATIENCE_SECONDS):
            raise UserError(str(error)) from error
        if away > self.limit_seconds:
            raise UserError(
                f"the API server was away for {self.limit_seconds:.0f} s; the job may still run,"
                f" look later: ifsq status {name}"
            ) from error
        return first

    def found(self) -> bool:
        """Note an answer; True if the server had been away."""
        away, self.since = self.since is not None, None
        return away


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
    patience = Patience(cluster.patience_seconds)
    while True:
        try:
            for state in _watch_once(cluster, name):
                if patience.found():
                    on_trouble("the API server answers again")
                yield state
                if state.finished:
                    return
        except ConnectionLost as error:
            if patience.lost(name, error):
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
        if event["type"] == "DELETED":
            state = JobState(name, GONE)
        yield state
