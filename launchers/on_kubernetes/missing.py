"""What a job names and its namespace does not have: the job is taken and waits for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.jobs.request import JobRequest
from launchers.on_kubernetes.cluster import KubernetesCluster

_UNKNOWN: dict[str, Any] = {}
_KUEUE = "/apis/kueue.x-k8s.io/v1beta2"


def missing_objects(cluster: KubernetesCluster, request: JobRequest) -> Iterator[str]:
    """A line for each claim and for the queue that are not there; nothing where it may not look.

    No error, as both may be made after the job.

    Args:
        cluster: with the namespace of the job.
        request: what it asks for.
    """
    place = f"namespaces/{cluster.namespace}"
    claims = [claim for claim, _ in request.more_storage]
    for claim in [request.claim, *claims] if request.claim else claims:
        if _found(cluster, f"/api/v1/{place}/persistentvolumeclaims/{claim}") is None:
            yield (
                f"namespace '{cluster.namespace}' has no claim '{claim}': the job's pods wait until"
                " it is there; wrong --storage or --namespace?"
            )
    if request.queue is None:
        return
    queues = f"{_KUEUE}/{place}/localqueues"
    if _found(cluster, f"{queues}/{request.queue}") is None:
        others = (_found(cluster, queues) or {}).get("items") or []
        names = ", ".join(queue["metadata"]["name"] for queue in others) or "none"
        yield (
            f"namespace '{cluster.namespace}' has no LocalQueue '{request.queue}' (it has:"
            f" {names}): the job waits until it is there; wrong --queue or --namespace?"
        )


def _found(cluster: KubernetesCluster, path: str) -> dict[str, Any] | None:
    try:
        return cluster.read_path(path, path)
    except (ConnectionLost, UserError):
        return _UNKNOWN
