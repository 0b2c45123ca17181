"""What a cluster profile can say about nodes, and what arrives in the pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.errors import UserError
from ifsq_train.config.load import load_recipe
from launchers.on_kubernetes.pod_override import merge
from launchers.on_kubernetes.profile import PROFILE_FOLDER, ClusterProfile, load_profile
from launchers.on_kubernetes.rayjob import build_rayjob
from launchers.on_kubernetes.rayjob_rules import check_rayjob
from tests.support.kube_api import make_request

SHIPPED = sorted(path.stem for path in PROFILE_FOLDER.glob("*.yaml"))
RESTRICTED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def job_of(profile: ClusterProfile, **changes: Any) -> dict[str, Any]:
    recipe = load_recipe("demo/tokenizer", ["data.global_batch_size=1024"])
    request = make_request(recipe=recipe, **changes)
    job = build_rayjob(request, profile, "team")
    check_rayjob(job)
    return job.to_manifest()


def templates(job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"] for group in groups] + [job["spec"]["submitterPodTemplate"]]


def head_and_worker(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [template["spec"] for template in templates(job)[:2]]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_pod_passes_the_restricted_pod_security_standard(name: str) -> None:
    """Kubernetes, Pod Security Standards, level *restricted*: all its rules that a pod can break.
    Pods with RDMA too: a capability would do nothing for a user that is not root."""
    job = job_of(load_profile(name, 8), nodes=2, gpus_per_node=8)
    for template in templates(job):
        spec = template["spec"]
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] != 0
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
        for volume in spec.get("volumes", []):
            assert volume.keys() - {"name"} <= RESTRICTED_VOLUMES
        for container in spec["containers"] + spec.get("initContainers", []):
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert not any(port.get("hostPort") for port in container.get("ports", []))


def test_gpus_are_given_back_when_a_job_ends() -> None:
    for name in SHIPPED:
        job = job_of(load_profile(name, 8), gpus_per_node=8)
        assert job["spec"]["shutdownAfterJobFinishes"] is True
        assert job["spec"]["ttlSecondsAfterFinished"] == 0


def test_gpu8_fits_nodes_of_96_cpus() -> None:
    """With what the kubelet and a handful of system pods keep for themselves."""
    profile = load_profile("gpu8", 8)
    assert float(profile.cpus_per_node) <= 92


@pytest.mark.parametrize(
    ("image", "policy"),
    [("r/i:1", "Always"), ("r/i", "Always"), (f"r/i@sha256:{'a' * 64}", "IfNotPresent")],
)
def test_a_tag_may_be_pushed_again_and_a_digest_not(image: str, policy: str) -> None:
    for template in templates(job_of(ClusterProfile(), image=image)):
        assert template["spec"]["containers"][0]["imagePullPolicy"] == policy


def test_images_by_digest_can_be_demanded() -> None:
    profile = ClusterProfile(image_by_digest=True)
    with pytest.raises(UserError, match="NAME@sha256"):
        job_of(profile, image="r/i:1")
    job_of(profile, image=f"r/i@sha256:{'a' * 64}")


def test_typed_keys_arrive_in_the_pods() -> None:
    profile = ClusterProfile.model_validate(
        yaml.safe_load(
            """
            annotations: {team: a}
            worker_annotations: {k8s.v1.cni.cncf.io/networks: roce-0}
            extra_resources: {vpc.amazonaws.com/efa: "32"}
            hugepages: {2Mi: 5Gi}
            runtime_class: nvidia
            scheduler_name: gang
            pod_priority_class: high
            resource_claims: {imex: imex-channel}
            network: {kind: efa, when_missing: warn}
            volumes:
              - {name: scratch, mount_path: /scratch, empty_dir: 1Ti, head: false}
              - {name: ca, mount_path: /etc/ca, config_map: ca, read_only: true}
            """
        )
    )
    job = job_of(profile, nodes=2)
    head, worker = head_and_worker(job)
    assert templates(job)[0]["metadata"]["annotations"] == {"team": "a"}
    assert templates(job)[1]["metadata"]["annotations"]["k8s.v1.cni.cncf.io/networks"] == "roce-0"
    container = worker["containers"][0]
    limits = container["resources"]["limits"]
    assert (limits["vpc.amazonaws.com/efa"], limits["hugepages-2Mi"]) == ("32", "5Gi")
    assert container["resources"]["claims"] == [{"name": "imex"}]
    assert worker["resourceClaims"] == [
        {"name": "imex", "resourceClaimTemplateName": "imex-channel"}
    ]
    assert worker["runtimeClassName"] == "nvidia"
    assert "runtimeClassName" not in head
    assert head["schedulerName"] == worker["schedulerName"] == "gang"
    assert head["priorityClassName"] == worker["priorityClassName"] == "high"
    mounts = {m["name"]: m for m in container["volumeMounts"]}
    assert mounts["scratch"]["mountPath"] == "/scratch"
    assert mounts["ca"]["readOnly"] is True
    assert mounts["hugepages-2mi"]["mountPath"] == "/dev/hugepages-2Mi"
    assert "scratch" not in {m["name"] for m in head["containers"][0]["volumeMounts"]}
    env = {v["name"]: v.get("value") for v in container["env"]}
    assert (env["IFSQ_NETWORK"], env["IFSQ_NETWORK_MISSING"]) == ("efa", "warn")


def test_several_claims_are_mounted_where_they_were_asked_for() -> None:
    job = job_of(ClusterProfile(), more_storage=(("datasets", "/data"),))
    for spec in head_and_worker(job):
        claims = {
            volume["name"]: volume["persistentVolumeClaim"]["claimName"]
            for volume in spec["volumes"]
            if "persistentVolumeClaim" in volume
        }
        assert claims == {"storage": "data", "storage-2": "datasets"}
        mounts = {m["name"]: m["mountPath"] for m in spec["containers"][0]["volumeMounts"]}
        assert (mounts["storage"], mounts["storage-2"]) == ("/mnt/ifsq", "/data")


def test_a_raw_template_is_merged_by_name() -> None:
    profile = ClusterProfile(
        worker_pod={
            "metadata": {"annotations": {"x": "y"}},
            "spec": {
                "hostNetwork": True,
                "containers": [
                    {"name": "ray-worker", "env": [{"name": "EXTRA", "value": "1"}]},
                    {"name": "sidecar", "image": "s"},
                ],
            },
        }
    )
    head, worker = head_and_worker(job_of(profile))
    assert worker["hostNetwork"] is True
    assert [c["name"] for c in worker["containers"]] == ["ray-worker", "sidecar"]
    env = {v["name"]: v.get("value") for v in worker["containers"][0]["env"]}
    assert env["EXTRA"] == "1"
    assert env["IFSQ_METRICS_PORT"] == "9464"
    assert "hostNetwork" not in head


def test_null_removes_and_other_lists_are_replaced() -> None:
    assert merge({"a": 1, "b": [1, 2]}, {"a": None, "b": [3]}) == {"b": [3]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker_pod: {spec: {hostNetwrok: true}}", "worker_pod.spec.hostNetwrok"),
        ("worker_pod: {spec: {containers: {name: a}}}", "a list is needed"),
        ("worker_pod: {spec: {containers: [{name: a, envs: []}]}}", r"containers\[0\].envs"),
        ("head_pod: {metadata: {labels: {ray.io/cluster: x}}}", "set by the program itself"),
        ("volumes: [{name: a, mount_path: /a}]", "needs exactly one of"),
        ("volumes: [{name: a, mount_path: a, claim: c}]", "mount_path"),
        ("hugepages: {4Mi: 1Gi}", "hugepages"),
        ("network: {kind: myrinet}", "network.kind"),
    ],
)
def test_wrong_keys_are_refused(tmp_path: Path, text: str, message: str) -> None:
    pytest.importorskip("kubernetes")
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_profile(str(path), 0)
