"""Why a job waits or does not start: its queue, its pods, its Ray cluster and the events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.events import (
    JobObjects,
    Reason,
    aggregate,
    event_reasons,
    make_reason,
    parse_time,
)

JOB_LABEL = "ifsq.dev/job"
UNNOTICED_SECONDS = 20
"""A job without any status for this long is not looked at by an operator."""
STUCK_SECONDS = 90
"""A job that is still Initializing this long after its pods became ready."""
_ORDINARY_WAITS = ("ContainerCreating", "PodInitializing", "")


def waiting_reasons(cluster: KubernetesCluster, job: dict[str, Any]) -> list[Reason]:
    """Everything the cluster says about why a job does not run, newest first.

    Sources the user may not read are left out.

    Args:
        cluster: where it is.
        job: the RayJob as the API server gives it.
    """
    mine, found = JobObjects(job), list[Reason]()
    seen = _or_nothing(lambda: cluster.list_pods(f"{JOB_LABEL}={mine.name}"))
    pods = seen or []
    found += _queue_reasons(cluster, job, mine)
    found += _pod_reasons(pods, mine)
    found += _cluster_reasons(cluster, job)
    events = _or_nothing(
        lambda: cluster.read(
            mine.name,
            lambda **options: cluster.core.list_namespaced_event(cluster.namespace, **options),
            "events",
        )
    )
    found += event_reasons((events or {}).get("items", []), mine)
    found += _operator_reasons(job, pods, mine)
    if seen is not None:
        found += _head_reasons(job, pods)
    return aggregate(found)


def _or_nothing(call: Callable[[], Any]) -> Any:
    """The answer; None where it cannot be read: a reason is a help and must not end a watch."""
    try:
        return call()
    except (ConnectionLost, UserError):
        return None


# ------------------------------------------------------------ Kueue


def _queue_reasons(
    cluster: KubernetesCluster, job: dict[str, Any], mine: JobObjects
) -> Iterator[Reason]:
    """Conditions of the job's Workload, and its place in the queue."""
    if not job["spec"].get("suspend"):
        return
    queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if not queue:
        # Kueue's webhook suspends it where jobs without a queue are managed, or a person has.
        text = (
            "the job is suspended and names no queue, so nothing will start it: give --queue,"
            f" or `kubectl patch rayjob {mine.name}` with spec.suspend false"
        )
        yield Reason("queue", "NoQueue", text, datetime.now(UTC))
        return
    for version in ("v1beta2", "v1beta1"):
        place = f"/apis/kueue.x-k8s.io/{version}/namespaces/{cluster.namespace}/workloads"
        # Kueue labels a Workload with its job's uid (pkg/controller/constants, JobUIDLabel).
        label = f"kueue.x-k8s.io/job-uid={mine.uid}"
        found = _or_nothing(
            lambda place=place, label=label: cluster.read_path(
                place, "workloads", labelSelector=label
            )
        )
        if found is not None:
            break
    else:
        return
    for workload in found.get("items", []):
        yield from workload_reasons(workload)
        yield from _place_in_queue(cluster, queue, workload)
    if not found.get("items") and _age(mine.created) > UNNOTICED_SECONDS:
        text = (
            f"the job waits for Kueue, which has made no Workload for it: is Kueue running, with"
            f" the integration ray.io/rayjob, and is there a LocalQueue '{queue}'?"
        )
        yield Reason("queue", "NoWorkload", text, datetime.now(UTC))


def workload_reasons(workload: dict[str, Any]) -> Iterator[Reason]:
    """What a Workload's conditions say about waiting or being evicted."""
    name = workload["metadata"]["name"]
    status = workload.get("status") or {}
    for condition in status.get("conditions") or []:
        kind, is_true = condition.get("type"), condition.get("status") == "True"
        waits = kind in ("QuotaReserved", "Admitted") and not is_true
        if kind == "Admitted" and (condition.get("reason") or "").startswith("NoReservation"):
            continue  # the condition QuotaReserved says why there is none
        if not (waits or (kind in ("Evicted", "Preempted") and is_true)):
            continue
        when = parse_time(condition.get("lastTransitionTime"))
        # The condition of a workload that was evicted stays; its own reason says it is pending.
        word = condition.get("reason") or kind
        if found := make_reason(
            "queue", word, condition.get("message") or "", when, {"name": name}
        ):
            yield found
    for check in status.get("admissionChecks") or []:
        if check.get("state") != "Ready":
            text = f"admission check {check.get('name')}: {check.get('message') or 'pending'}"
            when = parse_time(check.get("lastTransitionTime"))
            yield Reason("queue", check.get("state") or "Pending", text, when, frozenset([name]))


def _place_in_queue(
    cluster: KubernetesCluster, queue: str, workload: dict[str, Any]
) -> Iterator[Reason]:
    """Kueue's visibility API, where it is on and may be read."""
    for version in ("v1beta2", "v1beta1"):
        path = (
            f"/apis/visibility.kueue.x-k8s.io/{version}/namespaces/{cluster.namespace}"
            f"/localqueues/{queue}/pendingworkloads"
        )
        found = _or_nothing(lambda path=path: cluster.read_path(path, "pendingworkloads"))
        if found is None:
            continue
        for item in found.get("items") or []:
            if (item.get("metadata") or {}).get("name") == workload["metadata"]["name"]:
                place, total = item.get("positionInLocalQueue", 0) + 1, len(found["items"])
                text = f"place {place} of {total} in queue {queue}"
                yield Reason("queue", "Position", text, datetime.now(UTC))
        return


# ------------------------------------------------------------ pods and Ray cluster


def _pod_reasons(pods: list[dict[str, Any]], mine: JobObjects) -> Iterator[Reason]:
    for pod in pods:
        name, status = pod["metadata"]["name"], pod.get("status") or {}
        about = mine.about("Pod", name)
        if about is None:
            continue
        what = {"kind": "Pod", "name": name}
        for condition in status.get("conditions") or []:
            if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
                when = parse_time(condition.get("lastTransitionTime"))
                text = condition.get("message") or ""
                if found := make_reason(
                    about, condition.get("reason") or "Pending", text, when, what
                ):
                    yield found
        yield from _container_reasons(about, status, what)


def _container_reasons(
    about: str, status: dict[str, Any], what: dict[str, Any]
) -> Iterator[Reason]:
    started = parse_time(status.get("startTime"))
    containers = (status.get("initContainerStatuses") or []) + (
        status.get("containerStatuses") or []
    )
    for container in containers:
        state = container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        if (word := waiting.get("reason") or "") not in _ORDINARY_WAITS:
            text = waiting.get("message") or f"container {container.get('name')} waits"
            if found := make_reason(about, word, text, started, what):
                yield found
        if ended.get("exitCode"):
            text = (
                f"container {container.get('name')} ended with exit code {ended['exitCode']}"
                f" {ended.get('message') or ''}"
            )
            when = parse_time(ended.get("finishedAt"))
            yield Reason(about, ended.get("reason") or "Error", text.strip(), when)


def _cluster_reasons(cluster: KubernetesCluster, job: dict[str, Any]) -> Iterator[Reason]:
    name = (job.get("status") or {}).get("rayClusterName")
    if not name:
        return
    path = f"/apis/ray.io/v1/namespaces/{cluster.namespace}/rayclusters/{name}"
    found = _or_nothing(lambda: cluster.read_path(path, "rayclusters"))
    for condition in ((found or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            when = parse_time(condition.get("lastTransitionTime"))
            what = {"kind": "RayCluster", "name": name}
            word, text = condition.get("reason") or "ReplicaFailure", condition.get("message") or ""
            if made := make_reason("Ray cluster", word, text, when, what):
                yield made


def _operator_reasons(
    job: dict[str, Any], pods: list[dict[str, Any]], mine: JobObjects
) -> Iterator[Reason]:
    """Jobs nobody takes care of: KubeRay says nothing of them anywhere but in its log."""
    phase = (job.get("status") or {}).get("jobDeploymentStatus") or ""
    suspended = job["spec"].get("suspend")
    now = datetime.now(UTC)
    # Between two attempts the phase is empty as well, but not the status.
    if not job.get("status") and not suspended and _age(mine.created) > UNNOTICED_SECONDS:
        text = (
            f"no status after {_age(mine.created):.0f} s: is the KubeRay operator running, and"
            " does it watch this namespace? (kubectl logs deployment/kuberay-operator -n ...)"
        )
        yield Reason("job", "NotNoticed", text, now)
    current = (job.get("status") or {}).get("rayClusterName")
    pods = [pod for pod in pods if _belongs_to(pod, current)]
    ready = [when for pod in pods if (when := _ready_since(pod)) is not None]
    if phase == "Initializing" and ready and len(ready) == len(pods):
        waited = _age(max(ready))
        if waited > STUCK_SECONDS:
            text = (
                f"all pods have been ready for {waited:.0f} s but KubeRay does not submit the job;"
                " only the operator's log says why (a head Service without a `dashboard` port,"
                " or a network policy between the operator and the head)"
            )
            yield Reason("job", "NotSubmitted", text, now)


def _head_reasons(job: dict[str, Any], pods: list[dict[str, Any]]) -> Iterator[Reason]:
    """A running job whose head is gone: KubeRay writes that into no status and no event."""
    status = job.get("status") or {}
    if status.get("jobDeploymentStatus") != "Running":
        return
    heads = [pod for pod in pods if _belongs_to(pod, status.get("rayClusterName"))]
    heads = [pod for pod in heads if pod["metadata"]["labels"].get("ray.io/node-type") == "head"]
    if any(_ready_since(pod) for pod in heads):
        return
    text = (
        "no head pod is ready; if it was lost, KubeRay makes a new one, the job is sent again, and"
        " its run resumes from its last checkpoint"
    )
    yield Reason("head pod", "NotReady", text, datetime.now(UTC))


def _belongs_to(pod: dict[str, Any], cluster: str | None) -> bool:
    """Pods of an earlier attempt end while the next one starts."""
    meta = pod["metadata"]
    return (meta.get("labels") or {}).get("ray.io/cluster") == cluster and not meta.get(
        "deletionTimestamp"
    )


def _ready_since(pod: dict[str, Any]) -> datetime | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("status") == "True":
            return parse_time(condition.get("lastTransitionTime"))
    return None


def _age(when: datetime) -> float:
    return (datetime.now(UTC) - when).total_seconds()
