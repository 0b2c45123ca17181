"""What KubeRay and Kueue make of a job that cannot start: the cause is shown in their words.

The reference folder's stand-in for KubeRay's controllers and for the scheduler acts on the API
server's objects, without a kubelet: no process runs. What Kueue writes is copied from its source,
which each test names.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launchers.cli.program import app
from launchers.jobs.verdict import JobFailed
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.follow import follow_job
from tests.support.kube_api import POD, Api, load_tool, make_job

pytestmark = pytest.mark.heavy

WORKLOAD = ("kueue.x-k8s.io", "v1beta2", "workloads")


class Operator:
    """KubeRay's controllers and the scheduler, one look at all objects after the other."""

    def __init__(self, api: Api, shared_dir: Path) -> None:
        self._kubelet = load_tool(shared_dir, "kubelet").Kubelet(
            api.kube, str(api.folder), str(api.folder)
        )
        self._kubelet.nodes = {"node-1": {"cpu": 8, "memory": 32 << 30}}
        self._controllers = load_tool(shared_dir, "minikuberay").Operator(api.kube, self._kubelet)
        self._api, self._stopped = api, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while not self._stopped.wait(0.05):
            self._controllers.due.clear()
            self._controllers.tick()
            for key, _ in self._pods():
                pods = self._pods()
                pod = dict(pods).get(key)
                if pod and not pod["spec"].get("nodeName"):
                    self._kubelet.schedule(key, pod, pods)

    def _pods(self) -> list[tuple[Any, Any]]:
        with self._api.kube.cv:
            return [(key, o) for key, o in self._api.kube.obj.items() if key[2] == "pods"]

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10)


@pytest.fixture
def operator(api: Api, shared_dir: Path, tmp_path: Path) -> Iterator[Operator]:
    (tmp_path / "pvc" / "data").mkdir(parents=True)
    running = Operator(api, shared_dir)
    yield running
    running.stop()


def status_until(name: str, enough: Callable[[str], bool]) -> str:
    """What `ifsq status` shows, as soon as it says enough, else after half a minute."""
    shown, deadline = "", time.monotonic() + 30
    while not enough(shown) and time.monotonic() < deadline:
        shown = CliRunner().invoke(app, ["status", name]).output
    return shown


def test_pods_that_the_namespaces_quota_refuses(
    api: Api, operator: Operator, cluster: KubernetesCluster
) -> None:
    """KubeRay, raycluster_controller.go, createHeadPod and createWorkerPod: the refusal is the
    event's message, and a condition ReplicaFailure of the RayCluster."""
    quota = {"metadata": {"name": "lab"}, "spec": {"hard": {"requests.memory": "20Gi"}}}
    api.kube.create(("", "v1", "resourcequotas"), api.namespace, quota, {})
    cluster.submit(make_job())
    shown = status_until("tok", lambda text: "exceeded quota" in text)
    assert "Ray cluster: FailedToCreateWorkerPod" in shown
    assert "exceeded quota: lab, requested: requests.memory=" in shown


def test_pods_that_fit_no_node(api: Api, operator: Operator, cluster: KubernetesCluster) -> None:
    cluster.submit(make_job(nodes=3))
    shown = status_until("tok", lambda text: "worker pods (2)" in text)
    assert "worker pods (2): FailedScheduling: 0/1 nodes are available" in shown
    assert "Insufficient cpu" in shown


def test_a_claim_that_is_not_there(
    api: Api, operator: Operator, cluster: KubernetesCluster
) -> None:
    cluster.submit(make_job(claim="nothing"))
    shown = status_until("tok", lambda text: "worker pods (2)" in text)
    assert (
        'head pod: FailedScheduling: 0/1 nodes are available: persistentvolumeclaim "noth' in shown
    )


def test_an_image_that_cannot_be_pulled(
    api: Api, operator: Operator, cluster: KubernetesCluster
) -> None:
    """The kubelet's words: ErrImagePull at first, ImagePullBackOff later, in turn."""
    cluster.submit(make_job(nodes=1))
    pods = wait_for_pods(api, 2)
    for word, text in (
        ("ErrImagePull", 'failed to pull and unpack image "registry.example/ifsq:1": not found'),
        ("ImagePullBackOff", 'Back-off pulling image "registry.example/ifsq:1"'),
    ):
        for pod in pods:
            container = {"name": "ray-head", "image": "x", "ready": False}
            container["state"] = {"waiting": {"reason": word, "message": text}}
            status = {"containerStatuses": [container]}
            api._change(("", "v1", "pods", api.namespace, pod), {**status, "phase": "Pending"})
            api.warn(pod, f"Failed to pull image: {text}" if word == "ErrImagePull" else text)
        shown = status_until("tok", lambda text: "worker pods: ImagePull" in text)
        assert "head pod: ImagePull" in shown
        assert 'image "registry.example/ifsq:1"' in shown
    assert "not found" in shown, "the back-off that follows says less than the first failure"


def wait_for_pods(api: Api, count: int) -> list[str]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = [key[4] for key in list(api.kube.obj) if key[2] == "pods"]
        if len(found) == count:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{count} pods were not created")


def test_what_kuberays_validation_refuses_ends_the_job_with_its_words(
    api: Api, operator: Operator, cluster: KubernetesCluster
) -> None:
    """KubeRay, rayjob_controller.go, validateRayJob: ValidationFailed is final, without a retry and
    without an end time. Such a job gets past this program only if somebody changes it."""
    job = make_job().to_manifest()
    job["spec"]["shutdownAfterJobFinishes"] = False
    job["spec"]["ttlSecondsAfterFinished"] = 60
    api.kube.create(("ray.io", "v1", "rayjobs"), api.namespace, job, {})
    with pytest.raises(JobFailed, match="ValidationFailed: The RayJob spec is invalid: "):
        follow_job(cluster, "tok", lambda _: None)


def test_a_deadline_ends_the_job_without_a_retry_and_says_which(
    api: Api, operator: Operator, cluster: KubernetesCluster
) -> None:
    """KubeRay, rayjob_controller.go, checkBackoffLimitAndUpdateStatusIfNeeded: other failures are
    retried. The time in which pods wait counts."""
    job = make_job().to_manifest()
    job["spec"]["activeDeadlineSeconds"] = 1
    api.kube.create(("ray.io", "v1", "rayjobs"), api.namespace, job, {})
    with pytest.raises(JobFailed, match=r"DeadlineExceeded: .* passed the activeDeadlineSeconds"):
        follow_job(cluster, "tok", lambda _: None)
    status = cluster.get("tok")["status"]
    assert (status["failed"], job["spec"]["backoffLimit"]) == (1, 3)


def test_a_running_job_whose_head_is_gone_says_what_happens_next(
    api: Api, cluster: KubernetesCluster
) -> None:
    """KubeRay, raycluster_controller.go, reconcilePods: a head that ended is made anew, which no
    status and no event of the job says."""
    cluster.submit(make_job())
    api.set_status("tok", jobDeploymentStatus="Running", rayClusterName="tok-ab1de")
    labels = {"ifsq.dev/job": "tok", "ray.io/cluster": "tok-ab1de", "ray.io/node-type": "head"}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    gone = "head pod: NotReady: no head pod is ready; if it was lost, KubeRay makes a new one"
    assert gone in CliRunner().invoke(app, ["status", "tok"]).output
    api.add_pod("h-1", labels, phase="Running", conditions=[ready])
    assert gone not in CliRunner().invoke(app, ["status", "tok"]).output
    api._change((*POD, api.namespace, "h-1"), {"conditions": [{**ready, "status": "False"}]})
    assert gone in CliRunner().invoke(app, ["status", "tok"]).output
    api.kube.deny.append(("list", "pods"))
    assert gone not in CliRunner().invoke(app, ["status", "tok"]).output


def test_between_two_attempts_the_operator_is_not_called_missing(
    api: Api, cluster: KubernetesCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KubeRay, rayjob_controller.go: the phase is empty again between Retrying and Initializing."""
    monkeypatch.setattr("launchers.on_kubernetes.reasons.UNNOTICED_SECONDS", -1)
    cluster.submit(make_job())
    assert "is the KubeRay operator running" in CliRunner().invoke(app, ["status", "tok"]).output
    api.set_status("tok", failed=1, jobDeploymentStatus="")
    assert "is the KubeRay operator" not in CliRunner().invoke(app, ["status", "tok"]).output


# ------------------------------------------------------------ Kueue


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        # pkg/scheduler/flavorassigner/tas_flavorassigner.go, checkPodSetAndFlavorMatchForTAS
        ("Pending", 'Flavor "gpu" does not support TopologyAwareScheduling'),
        ("NoMatchingFlavor", 'Flavor "gpu" does not contain the requested level'),
    ],
)
def test_a_workload_that_no_flavor_takes(
    api: Api, cluster: KubernetesCluster, reason: str, message: str
) -> None:
    """pkg/scheduler/scheduler.go, requeueAndUpdate: condition QuotaReserved is False; Admitted is
    False too, and says only that (pkg/workload/admissionchecks.go)."""
    cluster.submit(make_job(queue="lab"))
    text = f"couldn't assign flavors to pod set workers: {message}"
    add_workload(
        api,
        {"type": "QuotaReserved", "status": "False", "reason": reason, "message": text},
        {
            "type": "Admitted",
            "status": "False",
            "reason": "NoReservation",
            "message": "The workload has no reservation",
        },
    )
    shown = CliRunner().invoke(app, ["status", "tok"]).output
    assert f"queue: {reason}: {text}" in shown
    assert "The workload has no reservation" not in shown
    listed = CliRunner().invoke(app, ["jobs"]).stdout
    assert f"queued in lab  queue: {reason}" in listed


def add_workload(api: Api, *conditions: dict[str, str]) -> None:
    # Workloads are served without a schema: their CRD is not in the reference folder.
    kind = {"kind": "Workload", "schema": None, "val": None, "status": True, "namespaced": True}
    api.kube.res.setdefault(WORKLOAD, kind)
    job = api.kube.obj["ray.io", "v1", "rayjobs", api.namespace, "tok"]
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    labels = {"kueue.x-k8s.io/job-uid": job["metadata"]["uid"]}
    container = {"name": "c", "image": "x"}
    spec = {
        "queueName": "lab",
        "podSets": [
            {
                "name": "head",
                "count": 1,
                "template": {"spec": {"containers": [container], "restartPolicy": "Never"}},
            }
        ],
    }
    body = {"metadata": {"name": "rayjob-tok-0a1f2", "labels": labels}, "spec": spec}
    api.kube.create(WORKLOAD, api.namespace, body, {})
    found = [{**condition, "lastTransitionTime": now} for condition in conditions]
    api._change((*WORKLOAD, api.namespace, "rayjob-tok-0a1f2"), {"conditions": found})


def test_a_suspended_job_without_a_queue_says_what_starts_it(
    api: Api, cluster: KubernetesCluster
) -> None:
    """Kueue, pkg/controller/jobframework/defaults.go, ApplyDefaultForSuspend: with
    manageJobsWithoutQueueName its webhook suspends jobs that name no queue."""
    job = make_job().to_manifest()
    job["spec"]["suspend"] = True
    api.kube.create(("ray.io", "v1", "rayjobs"), api.namespace, job, {})
    shown = CliRunner().invoke(app, ["status", "tok"]).output
    assert "names no queue, so nothing will start it: give --queue" in shown


# ------------------------------------------------------------ the operator's options


def test_a_finished_job_whose_record_the_operator_deletes_has_succeeded(
    api: Api, cluster: KubernetesCluster
) -> None:
    """KubeRay, rayjob_controller.go, handleShutdownAfterJobFinishes: with
    DELETE_RAYJOB_CR_AFTER_JOB_FINISHES it deletes the RayJob as soon as it has ended."""
    job = make_job().to_manifest()
    job["metadata"]["finalizers"] = ["ray.io/rayjob-finalizer"]
    api.kube.create(("ray.io", "v1", "rayjobs"), api.namespace, job, {})
    api.set_status("tok", jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
    api.remove("tok")
    lines: list[str] = []
    follow_job(cluster, "tok", lines.append)
    assert lines == ["[tok] succeeded"]
