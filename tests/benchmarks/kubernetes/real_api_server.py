"""By hand: what a stand-in cannot prove, against a real kube-apiserver without nodes.

    python -m tests.benchmarks.kubernetes.real_api_server ADMIN_KUBECONFIG USER_KUBECONFIG HELM

The user may do nothing until the chart gives it the submitter's role; the reference folder's
``tools/real_apiserver/up.sh`` makes both files. Prints one line for each check.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from data_pipelines.errors import UserError
from ifsq_train.config.load import load_recipe
from launchers.jobs.code import CodeBundle
from launchers.jobs.request import JobRequest
from launchers.jobs.verdict import JobFailed
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.follow import follow_job
from launchers.on_kubernetes.profile import load_profile
from launchers.on_kubernetes.rayjob import build_rayjob
from launchers.on_kubernetes.submission import submit_job
from tests.support.kube_api import load_tool
from tests.support.repository import REPOSITORY, SHARED

NAMESPACE = f"ml-{secrets.token_hex(3)}"
"""Of this call only: names of an earlier one would be taken."""
CHARTS = ("chart", "cluster-chart")


def kubectl(config: str, *words: str, body: Any = None) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "kubectl"), "--kubeconfig", config, *words]
    text = None if body is None else json.dumps(body)
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def render(helm: str, chart: str, overlay: str | None, *flags: str) -> list[dict[str, Any]]:
    folder = REPOSITORY / "k8s" / chart
    values = ["--values", str(folder / "overlays" / f"{overlay}.yaml")] if overlay else []
    command = [helm, "template", "t", str(folder), "--namespace", NAMESPACE, *values, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def request(name: str, nodes: int, gpus: int, **changes: Any) -> JobRequest:
    recipe = load_recipe("demo/tokenizer", ["data.global_batch_size=1024", f"name={name}"])
    values: dict[str, Any] = {"image": "r.example/i:1", "claim": "ifsq-storage", "queue": "ifsq"}
    return JobRequest(name, recipe, nodes, gpus, **(values | changes))


def refused(call: Callable[[], Any]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return "NOT REFUSED"


def say(what: str, result: object) -> None:
    sys.stdout.write(f"{what}: {result}\n")
    sys.stdout.flush()


def check_charts(admin: str, helm: str) -> None:
    """Every object of both charts with every overlay, by a server-side dry run."""
    for chart in CHARTS:
        for overlay in (None, "kind", "gpu8"):
            wrong, count = [], 0
            for found in render(helm, chart, overlay):
                flags = ["create", "--dry-run=server", "--validate=false", "-f", "-"]
                done = kubectl(admin, *flags, body=found)
                count += 1
                if done.returncode:
                    wrong.append(f"{found['kind']}: {done.stderr.strip()[:200]}")
            say(f"{chart} {overlay or 'default'}: {count} objects", wrong or "accepted")


def give_rights(admin: str, helm: str, *more: str) -> None:
    flags = ["--set", "submitters.users={alice}", *more]
    for found in render(helm, "chart", None, *flags):
        kubectl(admin, "apply", "--validate=false", "-f", "-", body=found)


def check_jobs(user: KubernetesCluster, admin: str) -> None:
    """Sizes, head Services, duplicates, quota, code, cancelling with garbage collection."""
    judge = load_tool(SHARED, "kuberay")
    for nodes in (1, 2, 128):
        job = build_rayjob(request(f"n{nodes}", nodes, 8), load_profile("gpu8", 8), NAMESPACE)
        user.dry_run(job)
        spec = job.to_manifest()["spec"]["rayClusterSpec"]
        service = judge.head_service(f"n{nodes}-abcde", spec, NAMESPACE)
        done = kubectl(admin, "create", "--dry-run=server", "-f", "-", body=service)
        say(f"{nodes} nodes", "dry run accepted; head Service " + (done.stderr or "accepted"))
    profile = load_profile("cpu", 0)
    code = CodeBundle("QQ==", "0123456789ab", 1)
    submit_job(user, request("one", 2, 0, code=code), profile, allow_unsupported=True)
    say("submitted with code by a submitter", [state.line() for state in user.list_jobs()])
    say(
        "duplicate",
        refused(lambda: user.submit(build_rayjob(request("one", 2, 0), profile, NAMESPACE))),
    )
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "lab"}}
    quota["spec"] = {"hard": {"count/rayjobs.ray.io": "1"}}
    kubectl(admin, "--namespace", NAMESPACE, "apply", "-f", "-", body=quota)
    time.sleep(8)
    say(
        "quota",
        refused(lambda: user.submit(build_rayjob(request("two", 2, 0), profile, NAMESPACE))),
    )
    say(
        "another namespace", refused(lambda: KubernetesCluster.connect(None, "default").list_jobs())
    )
    user.cancel("one")
    deadline, left = time.monotonic() + 60, ""
    while time.monotonic() < deadline:
        left = kubectl(admin, "--namespace", NAMESPACE, "get", "configmaps", "-o", "name").stdout
        if "one-code" not in left:
            break
        time.sleep(1)
    say(
        "after cancel, ConfigMaps of the job",
        [x for x in left.split() if "one-code" in x] or "none",
    )


def ifsq(*words: str) -> str:
    """Exit code and output of a command of the user's, who has an old API server."""
    command = [sys.executable, "-m", "launchers.cli", *words, "--namespace", NAMESPACE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"exit code {done.returncode}: {(done.stdout + done.stderr).strip()}"


def check_commands(admin: str, helm: str) -> None:
    """The user's commands; kubelets are missing, so no pod runs and no log can be had."""
    kubectl(admin, "--namespace", NAMESPACE, "delete", "resourcequota", "lab")
    words = ["submit", "demo/tokenizer", "--image", "r.example/i:1", "--nodes", "2"]
    words += ["--no-wait", "--storage"]
    say("version", ifsq(*words, "ifsq-storage"))
    old = "--allow-unsupported"
    names = ["--name", "waits", "--queue", "nobody", old]
    say("claim and queue that are not there", ifsq(*words, "nothing", *names))
    say("cancel", ifsq("cancel", "waits"))
    say("submit", ifsq(*words, "ifsq-storage", "--queue", "ifsq", old))
    for name in ("jobs", "status", "logs"):
        say(name, ifsq(name, *(["demo-tokenizer"] if name != "jobs" else [])))
    head = pod("demo-tokenizer-head", {"ifsq.dev/job": "demo-tokenizer", "ifsq.dev/role": "head"})
    submitter = pod("demo-tokenizer-s1", {"job-name": "demo-tokenizer"})
    for found in (head, submitter):
        say("pod", kubectl(admin, "--namespace", NAMESPACE, "create", "-f", "-", body=found).stderr)
        name, running = found["metadata"]["name"], {"status": {"phase": "Running"}}
        url = f"/api/v1/namespaces/{NAMESPACE}/pods/{name}/status"
        set_status(admin, url, running)
    say("logs without a kubelet", ifsq("logs", "demo-tokenizer"))
    for name in ("shell", "dashboard"):
        say(f"{name} without its right", ifsq(name, "demo-tokenizer"))
    give_rights(
        admin,
        helm,
        "--set",
        "submitters.rights.shell=true,submitters.rights.dashboard=true",
    )
    time.sleep(3)
    for name in ("shell", "dashboard"):
        say(f"{name} without a kubelet", ifsq(name, "demo-tokenizer"))


def pod(name: str, labels: dict[str, str]) -> dict[str, Any]:
    container = "ray-head" if "ifsq.dev/role" in labels else "submitter"
    spec = {"containers": [{"name": container, "image": "r.example/i:1"}], "nodeName": "n1"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }


def set_status(admin: str, path: str, body: Any) -> None:
    """What a kubelet would report."""
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(admin, client_configuration=settings)
    api = client.CoreV1Api(client.ApiClient(settings))
    name = path.split("/")[-2]
    api.patch_namespaced_pod_status(name, NAMESPACE, body)


def check_restart(user: KubernetesCluster, state: Path) -> None:
    """A job is followed while the API server is killed and started again, then cancelled."""
    lines: list[str] = []

    def follow() -> None:
        try:
            follow_job(user, "demo-tokenizer", lines.append)
        except (JobFailed, UserError) as error:
            lines.append(f"{type(error).__name__}: {error}")

    watcher = threading.Thread(target=follow)
    watcher.start()
    time.sleep(5)
    os.kill(int((state / "apiserver.pid").read_text()), signal.SIGKILL)
    time.sleep(10)
    server = subprocess.Popen(
        ["bash", "apiserver.sh"], cwd=state, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    (state / "apiserver.pid").write_text(str(server.pid))
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not any("answers again" in line for line in lines):
        time.sleep(0.5)
    time.sleep(5)
    user.cancel("demo-tokenizer")
    watcher.join(60)
    say("over a restart", lines)


def main() -> None:
    admin, user, helm = sys.argv[1:4]
    kubectl(admin, "create", "namespace", NAMESPACE)
    check_charts(admin, helm)
    os.environ["KUBECONFIG"] = user
    say("before the role", refused(lambda: KubernetesCluster.connect(None, NAMESPACE).list_jobs()))
    give_rights(admin, helm)
    time.sleep(2)
    cluster = KubernetesCluster.connect(None, NAMESPACE)
    check_jobs(cluster, admin)
    check_commands(admin, helm)
    check_restart(cluster, Path(admin).parent)


if __name__ == "__main__":
    main()
