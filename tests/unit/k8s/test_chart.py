"""The Helm chart: what it renders is valid, and wrong values are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.kube_api import load_tool
from tests.support.repository import REPOSITORY

CHART = REPOSITORY / "k8s" / "chart"
OVERLAYS: list[str | None] = [None, "kind", "gpu8"]
Objects = list[dict[str, Any]]


def run_helm(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False)


def values_of(overlay: str | None) -> list[str]:
    return ["--values", str(CHART / "overlays" / f"{overlay}.yaml")] if overlay else []


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda overlay: overlay or "default")
def rendered(helm: str, request: pytest.FixtureRequest) -> Objects:
    arguments = ["template", "test", str(CHART), "--namespace", "team", *values_of(request.param)]
    done = run_helm(helm, *arguments)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


def of_kind(objects: Objects, kind: str) -> Objects:
    return [found for found in objects if found["kind"] == kind]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_helm_lint_has_nothing_to_say(helm: str, overlay: str | None) -> None:
    done = run_helm(helm, "lint", "--strict", str(CHART), *values_of(overlay))
    assert done.returncode == 0, done.stdout
    assert "0 chart(s) failed" in done.stdout
    assert "[WARNING]" not in done.stdout


def test_custom_resources_follow_their_schemas(rendered: Objects, shared_dir: Path) -> None:
    crdcheck, celcheck = load_tool(shared_dir, "crdcheck"), load_tool(shared_dir, "celcheck")
    registry = crdcheck.load_crds(str(shared_dir / "crds" / "*.json"))
    crds = {}
    for path in (shared_dir / "crds").glob("*.json"):
        crd = json.loads(path.read_text())
        crds[crd["spec"]["names"]["kind"]] = crd
    custom = [found for found in rendered if found["kind"] in crds]
    assert custom
    for found in custom:
        assert crdcheck.check(found, registry) == [], found["kind"]
        assert celcheck.cel_errors(crds[found["kind"]], found) == [], found["kind"]


def test_builtin_resources_follow_their_schemas(rendered: Objects, tmp_path: Path) -> None:
    builtin = [found for found in rendered if "coreos" not in found["apiVersion"]]
    builtin = [found for found in builtin if "kueue" not in found["apiVersion"]]
    path = tmp_path / "objects.yaml"
    path.write_text(yaml.safe_dump_all(builtin))
    command = [str(Path(sys.executable).parent / "kubernetes-validate"), "--strict", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_account_of_jobs_has_no_rights(rendered: Objects) -> None:
    (account,) = of_kind(rendered, "ServiceAccount")
    assert account["automountServiceAccountToken"] is False
    for binding in of_kind(rendered, "RoleBinding"):
        subjects = [subject["name"] for subject in binding["subjects"]]
        assert account["metadata"]["name"] not in subjects


def test_submitters_get_what_the_commands_use_and_no_more(rendered: Objects) -> None:
    (role,) = of_kind(rendered, "Role")
    assert not of_kind(rendered, "ClusterRole")
    rules = {
        (group, resource): set(rule["verbs"])
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert rules == {
        ("ray.io", "rayjobs"): {"create", "get", "list", "watch", "delete"},
        ("", "pods"): {"get", "list"},
        ("", "events"): {"get", "list"},
        ("", "pods/log"): {"get"},
    }


def test_storage_outlives_the_release(rendered: Objects) -> None:
    (claim,) = of_kind(rendered, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_pods_of_jobs_are_the_ones_selected(rendered: Objects) -> None:
    from tests.support.kube_api import make_job

    labels = make_job().spec.ray_cluster_spec.worker_group_specs[0].template.metadata.labels or {}
    for kind in ("NetworkPolicy", "PodMonitor"):
        for found in of_kind(rendered, kind):
            spec = found["spec"]
            selector = spec.get("podSelector") or spec.get("selector")
            assert selector["matchLabels"].items() <= labels.items()


def test_dashboards_arrive_whole(rendered: Objects) -> None:
    maps = of_kind(rendered, "ConfigMap")
    assert len(maps) == 5
    for found in maps:
        ((name, text),) = found["data"].items()
        original = json.loads((CHART.parent / "dashboards" / name).read_text())
        assert json.loads(text) == original


def test_alerts_arrive_whole_and_link_to_their_runbooks(helm: str) -> None:
    url = "https://docs.example/runbooks"
    done = run_helm(helm, "template", "t", str(CHART), "--set", f"monitoring.runbookUrl={url}")
    objects = [doc for doc in yaml.safe_load_all(done.stdout) if doc]
    (rule,) = of_kind(objects, "PrometheusRule")
    arrived = {r["alert"]: r for group in rule["spec"]["groups"] for r in group["rules"]}
    sources = [yaml.safe_load(p.read_text()) for p in (CHART.parent / "alerts").glob("*.yaml")]
    expected = {r["alert"]: r for s in sources for group in s["groups"] for r in group["rules"]}
    assert arrived.keys() == expected.keys()
    for name, found in arrived.items():
        assert found["expr"] == expected[name]["expr"]
        page = expected[name]["annotations"]["runbook"]
        assert found["annotations"]["runbook_url"] == f"{url}/{page}.html"


@pytest.mark.parametrize(
    "wrong",
    [
        "storage.size=big",
        "storage.size=1TB",
        "storage.create=maybe",
        "storage.name=Upper",
        "storage.name=",
        "storage.accessMode=ReadOnly",
        "storage.sizes=1Ti",
        "serviceAccount.name=a_b",
        "serviceAccount.admin=true",
        "submitters.users=alice",
        "submitters.groups[0]=",
        "submitters.serviceAccounts[0]=A",
        "queue.name=a.b",
        "queue.clusterQueue=",
        "queue.preemption=Always",
        "queue.quota.cpu=many",
        "queue.quota.memory=-1Gi",
        "queue.quota.gpus=-1",
        "queue.quota.gpus=1.5",
        "queue.quota.gpus=eight",
        "queue.quota.gpuResource=nvidia gpu",
        "queue.quota.rdma=-1",
        "queue.quota.tpus=1",
        "queue.topologyLevels=rack",
        "queue.topologyLevels[0]=a b",
        "queue.flavor.tolerations[0].operator=Any",
        "queue.flavor.tolerations[0].effect=Never",
        "queue.flavor.tolerations[0].keys=a",
        "queue.flavor.topologyName=A",
        "queue.priorities.high=1.5",
        "queue.priorities.High=1",
        "networkPolicy.create=1",
        "networkPolicy.egressCidrs[0]=10.0.0.0",
        "networkPolicy.egressCidrs[0]=10.0.0.256/8",
        "networkPolicy.egressCidrs[0]=10.0.0.0/33",
        "networkPolicy.operatorNamespace=",
        "monitoring.interval=15",
        "monitoring.interval=0s",
        "monitoring.podMonitor=yes please",
        "monitoring.runbookUrl=docs/runbooks",
        "monitoring.prometheusNamespace=Monitoring",
        "monitoring.labels=release",
        "monitor.rules=true",
    ],
)
def test_wrong_values_are_refused(helm: str, wrong: str) -> None:
    done = run_helm(helm, "template", "test", str(CHART), "--set", wrong)
    assert done.returncode != 0
    assert "schema" in done.stderr, done.stderr


def test_a_toleration_of_existence_has_no_value(helm: str) -> None:
    where = "queue.flavor.tolerations[0]"
    flags = ["--set", f"{where}.key=gpu,{where}.operator=Exists,{where}.value=yes"]
    done = run_helm(helm, "template", "test", str(CHART), *flags)
    assert done.returncode != 0
