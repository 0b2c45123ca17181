"""The Helm charts: what they render is valid, and wrong values are refused."""

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

pytestmark = pytest.mark.heavy

CHART = REPOSITORY / "k8s" / "chart"
CLUSTER_CHART = REPOSITORY / "k8s" / "cluster-chart"
OVERLAYS: list[str | None] = [None, "kind", "gpu8"]
EVERY = [(chart, overlay) for chart in (CHART, CLUSTER_CHART) for overlay in OVERLAYS]
Objects = list[dict[str, Any]]


def run_helm(helm: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([helm, *arguments], capture_output=True, text=True, check=False)


def values_of(chart: Path, overlay: str | None) -> list[str]:
    return ["--values", str(chart / "overlays" / f"{overlay}.yaml")] if overlay else []


def render(helm: str, chart: Path, *flags: str, namespace: str = "team") -> Objects:
    done = run_helm(helm, "template", "test", str(chart), "--namespace", namespace, *flags)
    assert done.returncode == 0, done.stderr
    return [doc for doc in yaml.safe_load_all(done.stdout) if doc]


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda overlay: overlay or "default")
def rendered(helm: str, request: pytest.FixtureRequest) -> Objects:
    """The chart of a namespace."""
    return render(helm, CHART, *values_of(CHART, request.param))


@pytest.fixture(scope="module", params=OVERLAYS, ids=lambda overlay: overlay or "default")
def cluster_wide(helm: str, request: pytest.FixtureRequest) -> Objects:
    """The chart of a cluster."""
    return render(helm, CLUSTER_CHART, *values_of(CLUSTER_CHART, request.param))


@pytest.fixture(scope="module")
def everything(helm: str) -> Objects:
    """Both charts with every overlay."""
    return [
        found
        for chart, overlay in EVERY
        for found in render(helm, chart, *values_of(chart, overlay))
    ]


def of_kind(objects: Objects, kind: str) -> Objects:
    return [found for found in objects if found["kind"] == kind]


@pytest.mark.parametrize(("chart", "overlay"), EVERY)
def test_helm_lint_has_nothing_to_say(helm: str, chart: Path, overlay: str | None) -> None:
    done = run_helm(helm, "lint", "--strict", str(chart), *values_of(chart, overlay))
    assert done.returncode == 0, done.stdout
    assert "0 chart(s) failed" in done.stdout
    assert "[WARNING]" not in done.stdout


def test_custom_resources_follow_their_schemas(everything: Objects, shared_dir: Path) -> None:
    crdcheck, celcheck = load_tool(shared_dir, "crdcheck"), load_tool(shared_dir, "celcheck")
    registry = crdcheck.load_crds(str(shared_dir / "crds" / "*.json"))
    crds = {}
    for path in (shared_dir / "crds").glob("*.json"):
        crd = json.loads(path.read_text())
        crds[crd["spec"]["names"]["kind"]] = crd
    custom = [found for found in everything if found["kind"] in crds]
    assert custom
    for found in custom:
        assert crdcheck.check(found, registry) == [], found["kind"]
        assert celcheck.cel_errors(crds[found["kind"]], found) == [], found["kind"]


def test_builtin_resources_follow_their_schemas(everything: Objects, tmp_path: Path) -> None:
    builtin = [found for found in everything if "coreos" not in found["apiVersion"]]
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
        ("", "persistentvolumeclaims"): {"get"},
        ("kueue.x-k8s.io", "localqueues"): {"get", "list"},
        ("", "pods/log"): {"get"},
        ("ray.io", "rayclusters"): {"get", "list"},
        ("kueue.x-k8s.io", "workloads"): {"get", "list"},
        ("visibility.kueue.x-k8s.io", "localqueues/pendingworkloads"): {"get"},
        ("", "configmaps"): {"create"},
    }


@pytest.mark.parametrize(
    ("right", "resources"),
    [
        ("shell", {"pods/exec"}),
        ("dashboard", {"pods/portforward", "secrets"}),
        ("dataCopy", {"pods/exec"}),
    ],
)
def test_further_rights_are_given_when_asked_for(
    helm: str, right: str, resources: set[str]
) -> None:
    def given(*flags: str) -> set[tuple[str, str]]:
        (role,) = of_kind(render(helm, CHART, *flags), "Role")
        return {
            (name, verb)
            for rule in role["rules"]
            for name in rule["resources"]
            for verb in rule["verbs"]
        }

    more = given("--set", f"submitters.rights.{right}=true") - given()
    assert resources <= {name for name, _ in more}
    assert not any(verb in ("*", "update", "patch") for _, verb in more)


def test_a_namespaces_chart_holds_nothing_of_the_cluster(rendered: Objects) -> None:
    """So that it can be installed in several: helm refuses objects of another release."""
    assert {found["metadata"].get("namespace") for found in rendered} == {"team"}
    kinds = {found["kind"] for found in rendered}
    assert not kinds & {"ClusterQueue", "ResourceFlavor", "Topology", "WorkloadPriorityClass"}
    assert not kinds & {"PrometheusRule", "ConfigMap"}


def test_the_operator_is_let_in_from_any_namespace(helm: str) -> None:
    """The label that KubeRay's Helm chart (templates/_helpers.tpl, component) and its kustomization
    (config/manager/manager.yaml) both give the operator's pods."""
    (policy,) = of_kind(render(helm, CHART), "NetworkPolicy")
    sources = [source for rule in policy["spec"]["ingress"] for source in rule["from"]]
    assert {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    } in sources


def test_ports_of_object_stores_and_node_local_dns_are_let_out(helm: str) -> None:
    flags = ["--set", "networkPolicy.egressPorts={443,9000}"]
    flags += ["--set", "networkPolicy.egressNamespaces={minio}"]
    (policy,) = of_kind(render(helm, CHART, *flags), "NetworkPolicy")
    rules = policy["spec"]["egress"]
    dns = next(rule for rule in rules if any(p["port"] == 53 for p in rule.get("ports", [])))
    assert {"ipBlock": {"cidr": "169.254.20.10/32"}} in dns["to"]
    stores = rules[-1]
    assert [port["port"] for port in stores["ports"]] == [443, 9000]
    assert {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "minio"}}
    } in stores["to"]


@pytest.mark.parametrize("block", ["0.0.0.0/0", "128.0.0.0/1", "169.254.0.0/16"])
def test_the_metadata_server_is_not_let_out(helm: str, block: str) -> None:
    flags = ["--set", f"networkPolicy.egressCidrs={{10.0.0.0/8,{block}}}"]
    (policy,) = of_kind(render(helm, CHART, *flags), "NetworkPolicy")
    near, wide = policy["spec"]["egress"][-1]["to"][:2]
    assert near == {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert wide == {"ipBlock": {"cidr": block, "except": ["169.254.169.254/32"]}}


def test_the_metadata_server_cannot_be_let_out_alone(helm: str) -> None:
    wrong = "networkPolicy.egressCidrs[0]=169.254.169.254/32"
    done = run_helm(helm, "template", "test", str(CHART), "--set", wrong)
    assert done.returncode != 0
    assert "is the metadata server" in done.stderr


def test_head_pods_are_not_sent_to_gpu_nodes(helm: str) -> None:
    """Kueue tries flavors in their order and puts the flavor's node labels on all pods of a group;
    a flavor without GPUs comes first, and every flavor lists the same resources."""
    objects = render(helm, CLUSTER_CHART, *values_of(CLUSTER_CHART, "gpu8"))
    (queue,) = of_kind(objects, "ClusterQueue")
    (group,) = queue["spec"]["resourceGroups"]
    first, second = group["flavors"]
    for flavor in (first, second):
        assert [r["name"] for r in flavor["resources"]] == group["coveredResources"]
    gpus = {
        f["name"]: {r["name"]: r["nominalQuota"] for r in f["resources"]} for f in (first, second)
    }
    assert gpus["ifsq-cpu"]["nvidia.com/gpu"] == "0"
    assert gpus["ifsq-gpu8"]["nvidia.com/gpu"] == "128"


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


def test_dashboards_arrive_whole(cluster_wide: Objects) -> None:
    maps = of_kind(cluster_wide, "ConfigMap")
    names = {path.name for path in (CHART.parent / "dashboards").glob("*.json")}
    assert {name for found in maps for name in found["data"]} == names
    for found in maps:
        ((name, text),) = found["data"].items()
        original = json.loads((CHART.parent / "dashboards" / name).read_text())
        assert json.loads(text) == original


@pytest.mark.parametrize(
    ("flags", "link"),
    [
        ([], "/d/ifsq-runbooks#{page}"),
        (
            ["--set", "monitoring.grafanaUrl=https://g.example/"],
            "https://g.example/d/ifsq-runbooks#{page}",
        ),
        (["--set", "monitoring.runbookUrl=https://d.example/r"], "https://d.example/r/{page}.html"),
    ],
)
def test_rules_arrive_whole_and_alerts_link_to_their_runbooks(
    helm: str, flags: list[str], link: str
) -> None:
    (rule,) = of_kind(render(helm, CLUSTER_CHART, *flags), "PrometheusRule")
    arrived = [r for group in rule["spec"]["groups"] for r in group["rules"]]
    sources = [yaml.safe_load(p.read_text()) for p in (CHART.parent / "alerts").glob("*.yaml")]
    expected = [r for s in sources for group in s["groups"] for r in group["rules"]]
    name = lambda r: r.get("alert") or r["record"]  # noqa: E731
    by_name = {name(r): r for r in expected}
    assert sorted(map(name, arrived)) == sorted(by_name)
    for found in arrived:
        assert found["expr"] == by_name[name(found)]["expr"]
        if "alert" in found:
            page = by_name[name(found)]["annotations"]["runbook"]
            assert found["annotations"]["runbook_url"] == link.format(page=page)


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
        "submitters.rights.shell=yes please",
        "submitters.rights.root=true",
        "queue.name=a.b",
        "queue.clusterQueue=",
        "queue.createClusterQueue=true",
        "networkPolicy.create=1",
        "networkPolicy.egressCidrs[0]=10.0.0.0",
        "networkPolicy.egressCidrs[0]=10.0.0.256/8",
        "networkPolicy.egressCidrs[0]=10.0.0.0/33",
        "networkPolicy.egressPorts[0]=0",
        "networkPolicy.egressPorts[0]=http",
        "networkPolicy.egressNamespaces[0]=A",
        "networkPolicy.nodeLocalDns[0]=169.254.20.10",
        "networkPolicy.dnsNamespace=",
        "networkPolicy.operatorLabels=null",
        "monitoring.interval=15",
        "monitoring.interval=0s",
        "monitoring.podMonitor=yes please",
        "monitoring.labels=release",
        "monitor.rules=true",
    ],
)
def test_wrong_values_are_refused(helm: str, wrong: str) -> None:
    done = run_helm(helm, "template", "test", str(CHART), "--set", wrong)
    assert done.returncode != 0
    assert "schema" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        "queue.clusterQueue=",
        "queue.preemption=Always",
        "queue.flavors=none",
        "queue.flavors[0].name=A",
        "queue.flavors[0].quota.cpu=many",
        "queue.flavors[0].quota.memory=-1Gi",
        "queue.flavors[0].tolerations[0].operator=Any",
        "queue.flavors[0].tolerations[0].effect=Never",
        "queue.flavors[0].tolerations[0].keys=a",
        "queue.flavors[0].topologyName=A",
        "queue.flavors[0].gpus=1",
        "queue.topology.levels=rack",
        "queue.topology.levels[0]=a b",
        "queue.priorities.high=1.5",
        "queue.priorities.High=1",
        "monitoring.runbookUrl=docs/runbooks",
        "monitoring.runbookSuffix=.pdf",
        "monitoring.rules=1",
        "monitor.rules=true",
    ],
)
def test_wrong_values_of_the_cluster_are_refused(helm: str, wrong: str) -> None:
    done = run_helm(helm, "template", "test", str(CLUSTER_CHART), "--set", wrong)
    assert done.returncode != 0
    assert "schema" in done.stderr, done.stderr


def test_a_toleration_of_existence_has_no_value(helm: str) -> None:
    where = "queue.flavors[0].tolerations[0]"
    flags = ["--set", f"{where}.key=gpu,{where}.operator=Exists,{where}.value=yes"]
    done = run_helm(helm, "template", "test", str(CLUSTER_CHART), *flags)
    assert done.returncode != 0


def test_every_exception_of_the_security_scan_has_a_reason() -> None:
    found = yaml.safe_load((REPOSITORY / "k8s" / "checkov-exceptions.yaml").read_text())
    assert set(found) == {"pods", "charts", "image"}
    for part in found.values():
        for check, reason in part.items():
            assert check.startswith("CKV")
            assert len(reason.split()) >= 5, check
