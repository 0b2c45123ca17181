"""Why a job waits: this job's reasons only, newest first, equal ones once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from launchers.on_kubernetes.events import JobObjects, aggregate, event_reasons, event_time
from launchers.on_kubernetes.reasons import workload_reasons


def rayjob(name: str, cluster: str = "", groups: tuple[str, ...] = ("workers",)) -> dict[str, Any]:
    volume = {"name": "storage", "persistentVolumeClaim": {"claimName": "data"}}
    spec = {
        "headGroupSpec": {"template": {"spec": {"volumes": [volume]}}},
        "workerGroupSpecs": [{"groupName": group} for group in groups],
    }
    return {
        "metadata": {"name": name, "uid": "u1", "creationTimestamp": "2026-11-01T10:00:00Z"},
        "spec": {"rayClusterSpec": spec},
        "status": {"rayClusterName": cluster} if cluster else {},
    }


def event(kind: str, name: str, reason: str, message: str, **times: Any) -> dict[str, Any]:
    return {
        "metadata": {"creationTimestamp": "2026-11-01T10:00:01Z"},
        "type": "Warning",
        "reason": reason,
        "message": message,
        "involvedObject": {"kind": kind, "name": name},
        **times,
    }


def lines(job: dict[str, Any], *events: dict[str, Any]) -> list[str]:
    return [found.line() for found in aggregate(event_reasons(events, JobObjects(job)))]


def test_pods_of_workers_count_and_are_one_line() -> None:
    job = rayjob("tok", "tok-ab1de")
    events = [
        event("Pod", f"tok-ab1de-workers-worker-x{n:04d}", "FailedScheduling", "0/3 nodes")
        for n in range(64)
    ]
    assert lines(job, *events) == ["worker pods (64): FailedScheduling: 0/3 nodes"]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("Pod", "tok-2-ab1de-head-xxxxx"),
        ("Pod", "other-ab1de-head-xxxxx"),
        ("RayJob", "tok-2"),
        ("Workload", "rayjob-tok-2-abcde"),
        ("Workload", "job-tok-abcde"),
        ("PersistentVolumeClaim", "data-2"),
        ("ConfigMap", "tok"),
    ],
)
def test_objects_of_other_jobs_are_not_this_jobs(kind: str, name: str) -> None:
    assert lines(rayjob("tok", "tok-ab1de"), event(kind, name, "Failed", "no")) == []


def test_a_jobs_own_objects_are_called_by_what_they_are() -> None:
    mine = JobObjects(rayjob("tok", "tok-ab1de"))
    assert mine.about("Workload", "rayjob-tok-0a1f2") == "queue"
    assert mine.about("RayCluster", "tok-ab1de") == "Ray cluster"
    assert mine.about("Pod", "tok-xyz12") == "submitter pod"
    assert mine.about("Pod", "tok-ab1de-head-xyz12") == "head pod"
    assert mine.about("PersistentVolumeClaim", "data") == "claim data"


def test_names_of_pods_are_cut_as_kuberay_cuts_them() -> None:
    """ray-operator/controllers/ray/utils/util.go, PodName: prefixes of 50 characters."""
    name = "a" * 47
    cut = f"{name}-ab1de"[:50]
    for job in (rayjob(name, f"{name}-ab1de"), rayjob(name)):
        mine = JobObjects(job)
        assert mine.about("Pod", f"{cut}-head-xyz12") == "head pod"
        assert mine.about("Pod", f"{cut}-worker-xyz12") == "worker pods"


def test_events_of_an_earlier_job_of_that_name_are_left_out() -> None:
    old = event("RayJob", "tok", "Failed", "old", eventTime="2026-11-01T09:00:00.000000Z")
    old["metadata"]["creationTimestamp"] = "2026-11-01T09:00:00Z"
    assert lines(rayjob("tok"), old) == []


def test_the_newest_is_first_whatever_the_recorder_and_the_order_of_the_list() -> None:
    series = {"count": 9, "lastObservedTime": "2026-11-01T10:30:00.000000Z"}
    found = lines(
        rayjob("tok", "tok-ab1de"),
        event("RayJob", "tok", "Old", "b", lastTimestamp="2026-11-01T10:10:00Z"),
        event(
            "RayCluster", "tok-ab1de", "New", "c", eventTime="2026-11-01T10:01:00Z", series=series
        ),
        event("RayJob", "tok", "Oldest", "a", eventTime="2026-11-01T10:05:00.000000Z"),
    )
    assert found == ["Ray cluster: New: c", "job: Old: b", "job: Oldest: a"]


def test_an_event_without_any_time_does_not_break_the_order() -> None:
    assert event_time({"lastTimestamp": None}) == datetime.fromtimestamp(0, UTC)


def test_an_image_that_cannot_be_pulled_is_one_reason_with_the_registrys_words() -> None:
    pod = "tok-ab1de-head-xyz12"
    why = 'Failed to pull image "r/x:1": not found'
    found = lines(
        rayjob("tok", "tok-ab1de"),
        event("Pod", pod, "Failed", why, eventTime="2026-11-01T10:00:02Z"),
        event("Pod", pod, "Failed", "Error: ErrImagePull", eventTime="2026-11-01T10:00:03Z"),
        event(
            "Pod",
            pod,
            "BackOff",
            'Back-off pulling image "r/x:1"',
            eventTime="2026-11-01T10:00:09Z",
        ),
    )
    assert found == [f"head pod: ImagePull: {why}"]


def test_first_readiness_probes_are_no_reason() -> None:
    pod = "tok-ab1de-head-xyz12"
    probe = event("Pod", pod, "Unhealthy", "Readiness probe failed: connection refused")
    assert lines(rayjob("tok", "tok-ab1de"), probe) == []


def test_what_kueue_says_of_a_workload_that_waits() -> None:
    """Kueue, pkg/scheduler/scheduler.go, requeueAndUpdate: condition QuotaReserved False."""
    text = (
        "couldn't assign flavors to pod set workers: flavor gpu does not support topology-aware"
        " scheduling"
    )
    workload = {
        "metadata": {"name": "rayjob-tok-0a1f2"},
        "status": {
            "conditions": [
                {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": text},
                {"type": "Evicted", "status": "True", "reason": "Preempted", "message": "higher"},
                {"type": "PodsReady", "status": "False", "reason": "x", "message": "y"},
            ],
            "admissionChecks": [{"name": "prov", "state": "Pending", "message": "no machines"}],
        },
    }
    assert [found.line() for found in workload_reasons(workload)] == [
        f"queue: Pending: {text}",
        "queue: Preempted: higher",
        "queue: Pending: admission check prov: no machines",
    ]


def test_a_head_pod_may_have_no_suffix() -> None:
    """ray-operator/controllers/ray/utils/util.go, IsDeterministicHeadPodNameEnabled: an option of
    the operator."""
    mine = JobObjects(rayjob("tok", "tok-ab1de"))
    assert mine.about("Pod", "tok-ab1de-head") == "head pod"
    assert mine.about("Pod", "tok-ab1de-workers-worker") is None
    assert mine.about("Pod", "tok-ab1de-head-svc") is None
