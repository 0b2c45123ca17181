"""What KubeRay makes of a job, checked without a cluster.

Facts: ray-operator/controllers/ray of KubeRay 1.3 to 1.7. The first half needs nothing; the second
runs the reference folder's judge, which knows 45 behaviours of the operator.
"""

from __future__ import annotations

import copy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from ifsq_train.config.load import load_recipe
from launchers.jobs.request import SecretRef
from tests.support.kube_api import load_tool, make_job

RECIPES = ["demo/tokenizer", "demo/tokens", "demo/generator", "demo/samples", "demo/evaluation"]
SHAPES = [("kind", 1, 0), ("cpu", 1, 0), ("gpu", 1, 1), ("gpu8", 1, 8)]
BIG = [("gpu8", 2, 8), ("gpu8", 128, 8)]


def jobs() -> dict[str, dict[str, Any]]:
    """Every kind of job on every shipped profile, queued and not, and the large ones."""
    found = {}
    for name in RECIPES:
        for profile, nodes, gpus in SHAPES:
            for queue in (None, "lab"):
                job = make_job(
                    profile,
                    recipe=load_recipe(name),
                    nodes=nodes,
                    gpus_per_node=gpus if name != "demo/evaluation" else min(gpus, 1),
                    queue=queue,
                    secrets=(SecretRef("s3"), SecretRef("w", "key", "WANDB_API_KEY")),
                )
                found[f"{name}-{profile}-{queue}"] = job.to_manifest()
    recipe = load_recipe("demo/tokenizer", ["data.global_batch_size=1024"])
    for profile, nodes, gpus in BIG:
        job = make_job(profile, recipe=recipe, nodes=nodes, gpus_per_node=gpus, queue="lab")
        found[f"{profile}-{nodes}"] = job.to_manifest()
    return found


JOBS = jobs()


def head_service_ports(job: dict[str, Any]) -> list[tuple[str, int]]:
    """common/service.go, getServicePorts: the declared ports of the head's first container, the
    five defaults only where none is declared, and `metrics` 8080 where no port has that name."""
    template = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    declared = template["spec"]["containers"][0].get("ports") or []
    ports = [(port["name"], port["containerPort"]) for port in declared]
    if not ports:
        ports = [("client", 10001), ("gcs-server", 6379), ("dashboard", 8265), ("serve", 8000)]
    if "metrics" not in dict(ports):
        ports.append(("metrics", 8080))
    return ports


@pytest.mark.parametrize("name", JOBS)
def test_the_head_service_is_accepted_and_leads_to_the_dashboard(name: str) -> None:
    """An API server refuses a Service with two names for one port, and KubeRay finds the dashboard
    by its port's name (utils/util.go, FetchHeadServiceURL): without it a job is never submitted."""
    ports = head_service_ports(JOBS[name])
    assert [number for number, count in Counter(n for _, n in ports).items() if count > 1] == []
    assert dict(ports)["dashboard"] == 8265
    assert dict(ports)["gcs-server"] == 6379


def test_the_rule_finds_a_port_with_two_names() -> None:
    job = copy.deepcopy(JOBS["gpu8-2"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["ports"] = [{"name": "ray-metrics", "containerPort": 8080}]
    assert head_service_ports(job) == [("ray-metrics", 8080), ("metrics", 8080)]
    assert "dashboard" not in dict(head_service_ports(job))


@pytest.mark.parametrize("name", JOBS)
def test_each_metrics_port_has_one_name_and_prometheus_scrapes_it_once(name: str) -> None:
    spec = JOBS[name]["spec"]["rayClusterSpec"]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        ports = group["template"]["spec"]["containers"][0]["ports"]
        numbers = {port["name"]: port["containerPort"] for port in ports}
        assert numbers["metrics"] == 8080
        assert numbers.get("ifsq-metrics", 9464) == 9464
        assert len(set(numbers.values())) == len(numbers)


def test_kuberays_judge_accepts_every_job(shared_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "jobs.yaml"
    path.write_text(yaml.safe_dump_all([{**job} for job in JOBS.values()]))
    command = [sys.executable, str(shared_dir / "tools" / "kuberay.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wrong = [line for line in done.stdout.splitlines() if not line.endswith(": ok")]
    assert (done.returncode, wrong) == (0, []), done.stderr
    assert len(done.stdout.splitlines()) == len(JOBS)


def test_the_judge_refuses_what_never_starts(shared_dir: Path) -> None:
    """So that an empty list above means something."""
    judge = load_tool(shared_dir, "kuberay")
    job = copy.deepcopy(JOBS["gpu8-2"])
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    head["ports"] = [{"name": "gcs-server", "containerPort": 6379}]
    service = judge.head_service("c", job["spec"]["rayClusterSpec"], "team")
    with pytest.raises(ValueError, match="dashboard port is not found"):
        judge.service_url(service)
