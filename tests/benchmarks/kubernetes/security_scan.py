"""checkov over everything that reaches a cluster: charts, pods of every kind of job, the image.

    python -m tests.benchmarks.kubernetes.security_scan --helm HELM --checkov CHECKOV

checkov knows no RayJobs, so the pod templates of the jobs are scanned as Pods, in the namespace of
the chart's objects. A finding must be named, with its reason, in ``k8s/checkov-exceptions.yaml``;
an exception that nothing needs is a fault too. checkov is not part of ``make install``: it pins
many packages of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from tests.support.repository import REPOSITORY

EXCEPTIONS = REPOSITORY / "k8s" / "checkov-exceptions.yaml"
NAMESPACE = "team"
OVERLAYS = (None, "kind", "gpu8")


def charts(helm: str) -> str:
    """Objects of both charts with every overlay."""
    found = []
    for chart in ("chart", "cluster-chart"):
        folder = REPOSITORY / "k8s" / chart
        for overlay in OVERLAYS:
            command = [helm, "template", overlay or "test", str(folder), "--namespace", NAMESPACE]
            if overlay:
                command += ["--values", str(folder / "overlays" / f"{overlay}.yaml")]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.append(done.stdout)
    return "\n---\n".join(found)


def pods() -> list[dict[str, Any]]:
    """Every different pod of the jobs that the tests render."""
    from tests.unit.launchers.on_kubernetes.test_kuberay_rules import JOBS

    found: dict[str, dict[str, Any]] = {}
    for job in JOBS.values():
        cluster = job["spec"]["rayClusterSpec"]
        templates = [cluster["headGroupSpec"]["template"], job["spec"]["submitterPodTemplate"]]
        templates += [group["template"] for group in cluster["workerGroupSpecs"]]
        for template in templates:
            text = json.dumps(template["spec"], sort_keys=True)
            metadata = {**template.get("metadata", {}), "namespace": NAMESPACE}
            metadata["name"] = f"pod-{len(found)}"
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
            found.setdefault(text, {**pod, "spec": template["spec"]})
    return list(found.values())


def findings(checkov: str, framework: str, *target: str) -> dict[str, str]:
    """What failed: id of the check -> its title and the first thing it is about."""
    command = [checkov, "--framework", framework, "--output", "json", "--compact", *target]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(f"checkov says nothing: {done.stderr[-2000:]}")
    answer = json.loads(done.stdout)
    parts = answer if isinstance(answer, list) else [answer]
    failed = [check for part in parts for check in part["results"]["failed_checks"]]
    if not any(part["results"].get("passed_checks") for part in parts):
        raise RuntimeError("checkov has checked nothing")
    return {check["check_id"]: f"{check['check_name']}: {check['resource']}" for check in failed}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--helm", default="helm")
    parser.add_argument("--checkov", default="checkov")
    options = parser.parse_args()
    allowed = yaml.safe_load(EXCEPTIONS.read_text())
    faults = 0
    with tempfile.TemporaryDirectory() as folder:
        chart_objects = charts(options.helm)
        chart_file, pod_file = Path(folder) / "charts.yaml", Path(folder) / "all.yaml"
        chart_file.write_text(chart_objects)
        # With the chart's policies, which select the pods by label.
        pod_file.write_text(f"{chart_objects}\n---\n{yaml.safe_dump_all(pods())}")
        image = str(REPOSITORY / "k8s" / "image" / "Dockerfile")
        found = {
            "charts": findings(options.checkov, "kubernetes", "-f", str(chart_file)),
            "pods": findings(options.checkov, "kubernetes", "-f", str(pod_file)),
            "image": findings(options.checkov, "dockerfile", "-f", image),
        }
    for part, failed in found.items():
        for check in sorted(failed.keys() | allowed[part].keys()):
            known = check in allowed[part]
            word = "excepted" if known and check in failed else "NOT NEEDED" if known else "FOUND"
            faults += word != "excepted"
            reason = allowed[part].get(check, "")
            sys.stdout.write(f"{part} {check} {word}: {failed.get(check, '')} {reason}\n")
    sys.stdout.write(f"{faults} faults\n")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
