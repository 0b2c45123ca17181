"""The RayJob that is sent: valid for the API server, KubeRay and Kueue, and what it promises."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.errors import UserError
from ifsq_train.config.load import load_recipe, validate_recipe
from launchers.jobs.request import JobRequest, SecretRef, default_name, parse_env, parse_secrets
from launchers.on_kubernetes.objects import RayJob
from launchers.on_kubernetes.profile import RAY_DRAIN_SECONDS, ClusterProfile, load_profile
from launchers.on_kubernetes.rayjob import build_rayjob
from launchers.on_kubernetes.rayjob_rules import check_rayjob
from tests.support.kube_api import load_tool, make_job, make_request

SIZES = [
    ("kind", 1, 0, None),
    ("gpu", 2, 4, None),
    ("gpu8", 1, 8, "team-queue"),
    ("gpu8", 2, 8, "team-queue"),
    ("gpu8", 128, 8, "team-queue"),
]


def manifest(profile: str, nodes: int, gpus: int, **changes: Any) -> dict[str, Any]:
    recipe = load_recipe("demo/tokenizer", ["data.global_batch_size=1024"])
    job = make_job(profile, nodes=nodes, gpus_per_node=gpus, recipe=recipe, **changes)
    check_rayjob(job)
    return job.to_manifest()


def head_and_workers(job: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    cluster = job["spec"]["rayClusterSpec"]
    return cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]


@pytest.mark.parametrize(("profile", "nodes", "gpus", "queue"), SIZES)
def test_schema_and_cel_rules_hold(
    shared_dir: Path, profile: str, nodes: int, gpus: int, queue: str | None
) -> None:
    job = manifest(profile, nodes, gpus, queue=queue)
    crdcheck = load_tool(shared_dir, "crdcheck")
    registry = crdcheck.load_crds(str(shared_dir / "crds" / "ray.io_rayjobs.json"))
    assert crdcheck.check(job, registry) == []
    celcheck = load_tool(shared_dir, "celcheck")
    crd = json.loads((shared_dir / "crds" / "ray.io_rayjobs.json").read_text())
    assert celcheck.cel_errors(crd, job) == []


@pytest.mark.parametrize(("profile", "nodes", "gpus", "queue"), SIZES)
def test_pods_are_valid_kubernetes_objects(
    profile: str, nodes: int, gpus: int, queue: str | None, tmp_path: Path
) -> None:
    job = manifest(
        profile, nodes, gpus, queue=queue, secrets=(SecretRef("a"), SecretRef("b", "k", "V"))
    )
    groups = head_and_workers(job)
    templates = [group["template"] for group in groups] + [job["spec"]["submitterPodTemplate"]]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {**t["metadata"], "name": "p"}}
        | {"spec": t["spec"]}
        for t in templates
    ]
    path = tmp_path / "pods.yaml"
    path.write_text(yaml.safe_dump_all(pods))
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_head_takes_nothing_the_workers_need() -> None:
    head, workers = head_and_workers(manifest("gpu8", 2, 8))
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]
    limits = workers["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "8"
    assert limits["rdma/ib"] == "1"


def test_the_worker_group_does_not_change_its_size() -> None:
    job = manifest("gpu8", 128, 8)
    workers = head_and_workers(job)[1]
    assert workers["replicas"] == workers["minReplicas"] == workers["maxReplicas"] == 128
    assert job["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is False


def test_annotations_of_the_workers_beat_those_of_all_pods() -> None:
    profile = load_profile("gpu8", 8).model_copy(
        update={"annotations": {"a": "all", "b": "all"}, "worker_annotations": {"a": "workers"}}
    )
    job = build_rayjob(make_request(nodes=2, gpus_per_node=8), profile, "team").to_manifest()
    head, workers = (part["template"]["metadata"] for part in head_and_workers(job))
    assert head["annotations"] == {"a": "all", "b": "all"}
    assert {k: workers["annotations"][k] for k in "ab"} == {"a": "workers", "b": "all"}


def test_a_queued_job_waits_for_kueue_and_prefers_one_block() -> None:
    job = manifest("gpu8", 2, 8, queue="team-queue")
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert job["spec"]["suspend"] is True
    annotations = head_and_workers(job)[1]["template"]["metadata"]["annotations"]
    key = "kueue.x-k8s.io/podset-preferred-topology"
    assert annotations == {key: "cloud.provider.com/topology-block"}
    assert manifest("gpu8", 2, 8)["spec"]["suspend"] is False


def test_no_container_is_privileged_or_root() -> None:
    job = manifest("gpu8", 2, 8)
    groups = head_and_workers(job)
    for template in [g["template"] for g in groups] + [job["spec"]["submitterPodTemplate"]]:
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]


def test_workers_have_shared_memory_and_time_to_save() -> None:
    pod = head_and_workers(manifest("gpu8", 2, 8))[1]["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    shm = volumes[mounts["/dev/shm"]]
    assert shm["emptyDir"] == {"medium": "Memory", "sizeLimit": "128Gi"}
    assert pod["terminationGracePeriodSeconds"] > RAY_DRAIN_SECONDS


def test_secrets_travel_by_reference_only() -> None:
    secrets = parse_secrets(["s3-credentials", "WANDB_API_KEY=wandb:key"])
    for group in head_and_workers(manifest("cpu", 2, 0, secrets=secrets)):
        container = group["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]
        variable = next(v for v in container["env"] if v["name"] == "WANDB_API_KEY")
        assert variable == {
            "name": "WANDB_API_KEY",
            "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "key"}},
        }


def test_a_secret_as_a_plain_variable_is_refused() -> None:
    with pytest.raises(UserError, match="--secret AWS_SECRET_ACCESS_KEY=SECRET:KEY"):
        parse_env(["AWS_SECRET_ACCESS_KEY=abc"])


@pytest.mark.parametrize("item", ["A", "1A=b", "A B=c", "RAY_ADDRESS=x", "IFSQ_RECIPE=x"])
def test_wrong_variables_are_refused(item: str) -> None:
    with pytest.raises(UserError, match="--env"):
        parse_env([item])


@pytest.mark.parametrize("item", ["A=b", "A=b:", "=b:c", "Upper", "1=b:c"])
def test_wrong_secrets_are_refused(item: str) -> None:
    with pytest.raises(UserError, match="--secret"):
        parse_secrets([item])


def test_the_recipe_arrives_as_it_was_sent() -> None:
    head, _ = head_and_workers(manifest("cpu", 2, 0))
    env = {v["name"]: v["value"] for v in head["template"]["spec"]["containers"][0]["env"]}
    received = validate_recipe(yaml.safe_load(env["IFSQ_RECIPE"]), source="job")
    assert received == load_recipe("demo/tokenizer", ["data.global_batch_size=1024"])
    assert json.loads(env["IFSQ_LAUNCH"])["num_workers"] == 2


def ports_of(group: dict[str, Any]) -> dict[str, int]:
    container = group["template"]["spec"]["containers"][0]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_the_head_declares_the_ports_kuberay_looks_for() -> None:
    """KubeRay, ray-operator/controllers/ray/common/service.go, getServicePorts."""
    head, _ = head_and_workers(manifest("gpu", 2, 4))
    assert ports_of(head) == {
        "gcs-server": 6379,
        "dashboard": 8265,
        "client": 10001,
        "metrics": 8080,
    }


def test_no_port_number_has_two_names_and_prometheus_finds_the_workers() -> None:
    _, workers = head_and_workers(manifest("gpu", 2, 4))
    assert ports_of(workers) == {"metrics": 8080, "ifsq-metrics": 9464}
    assert workers["template"]["metadata"]["labels"]["app.kubernetes.io/part-of"] == "ifsq-train"


def broken(**changes: Any) -> RayJob:
    job = make_job("cpu", queue="q")
    spec = {key: value for key, value in changes.items() if key in type(job.spec).model_fields}
    meta = {key: value for key, value in changes.items() if key not in spec}
    return job.model_copy(
        update={
            "spec": job.spec.model_copy(update=spec),
            "metadata": job.metadata.model_copy(update=meta),
        }
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a" * 48}, "KubeRay allows 47"),
        ({"name": "Upper"}, "lower-case letters"),
        ({"name": "1st"}, "starting with a letter"),
        ({"name": "dot.ted"}, "lower-case letters"),
        ({"entrypoint": "ifsq train; rm x"}, "a shell would act on"),
        ({"entrypoint": "ifsq train $HOME"}, "a shell would act on"),
        ({"entrypoint": "ifsq train 'a'"}, "a shell would act on"),
        ({"entrypoint": "ifsq train\nls"}, "a shell would act on"),
        ({"shutdown_after_job_finishes": False}, "shutdownAfterJobFinishes"),
        ({"suspend": False}, "must start suspended"),
        ({"active_deadline_seconds": 0}, "must be 1 or more"),
        ({"backoff_limit": -1}, "must be 0 or more"),
        ({"ttl_seconds_after_finished": -1}, "must be 0 or more"),
        ({"labels": {"a": "b c"}}, "label a"),
    ],
)
def test_what_kuberay_would_refuse_is_found_before_sending(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check_rayjob(broken(**changes))


def test_shared_memory_larger_than_the_pod_is_refused() -> None:
    profile = ClusterProfile(memory_per_node="8Gi", shm_size="8Gi")
    with pytest.raises(UserError, match="make it smaller"):
        check_rayjob(build_rayjob(make_request(), profile, "team"))


def test_a_variable_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="WANDB is set twice"):
        check_rayjob(make_job(env={"WANDB": "x"}, secrets=parse_secrets(["WANDB=s:k"])))


def test_a_job_needs_an_image_and_common_storage() -> None:
    with pytest.raises(UserError, match="--image"):
        make_job(image="")
    with pytest.raises(UserError, match="--storage"):
        make_job(claim=None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grace_period_seconds: 20", "too short"),
        ("memory_per_node: lots", "memory_per_node"),
        ("gpus: 8", "gpus"),
        ("- a", "mapping"),
        ("a: [", "not valid YAML"),
        ("run_as_user: 0", "run_as_user"),
    ],
)
def test_wrong_profiles_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        load_profile(str(path), 0)
    with pytest.raises(UserError, match="gpu8"):
        load_profile("nothing", 0)


def test_a_name_comes_from_the_recipe() -> None:
    assert default_name(load_recipe("demo/tokenizer")) == "demo-tokenizer"
    long = load_recipe("demo/tokenizer", ["name=9" + "x" * 80])
    name = default_name(long)
    assert len(name) <= 47
    request = JobRequest(name, long, image="i", claim="c")
    check_rayjob(build_rayjob(request, load_profile("cpu", 0), "n"))


def test_the_user_s_environment_beats_the_profile_s_and_that_the_defaults() -> None:
    profile = load_profile("gpu8", 8).model_copy(
        update={"env": {"BOTH": "profile", "PROFILE": "p", "RAY_health_check_period_ms": "1"}}
    )
    request = make_request(nodes=2, gpus_per_node=8, env={"BOTH": "user", "USER_ONLY": "u"})
    head, workers = head_and_workers(build_rayjob(request, profile, "team").to_manifest())
    for group in (head, workers):
        container = group["template"]["spec"]["containers"][0]
        env = {entry["name"]: entry.get("value") for entry in container["env"]}
        assert env["BOTH"] == "user"
        assert env["USER_ONLY"] == "u"
        assert env["PROFILE"] == "p"
        assert env["RAY_health_check_period_ms"] == "1"


@pytest.mark.parametrize(("memory", "expected"), [("64Gi", 16 * 2**30), ("1Ti", 2**38)])
def test_the_object_store_is_a_quarter_of_the_shared_memory(memory: str, expected: int) -> None:
    profile = load_profile("gpu8", 8).model_copy(update={"shm_size": memory, "head_memory": memory})
    request = make_request(nodes=2, gpus_per_node=8)
    for group in head_and_workers(build_rayjob(request, profile, "team").to_manifest()):
        assert int(group["rayStartParams"]["object-store-memory"]) == expected
