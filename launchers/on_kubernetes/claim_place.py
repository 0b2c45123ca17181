"""Files of a PersistentVolumeClaim, through a helper pod that mounts it."""

from __future__ import annotations

import json
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from launchers.on_kubernetes.access import kubectl
from launchers.on_kubernetes.cluster import TIMEOUT, KubernetesCluster

MOUNT = "/claim"
CHUNK_BYTES = 16 << 20
_START_SECONDS = 300.0
_LIFETIME_SECONDS = 24 * 3600
_LIST = (
    "import json, os, sys; r = sys.argv[1];"
    " print(json.dumps({os.path.relpath(os.path.join(d, f), r):"
    " os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(r) for f in fs}))"
)
_HASH = (
    "import hashlib, sys; h = hashlib.sha256(); f = open(sys.argv[1], 'rb');"
    " [h.update(c) for c in iter(lambda: f.read(1 << 20), b'')]; print(h.hexdigest())"
)
_READ = (
    "import shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), sys.stdout.buffer, 1 << 20)"
)
_WRITE = (
    "import os, shutil, sys; p = sys.argv[1]; os.makedirs(os.path.dirname(p), exist_ok=True);"
    " t = p + '.part'; f = open(t, 'wb'); shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20);"
    " f.flush(); os.fsync(f.fileno()); f.close(); os.replace(t, p)"
)


class ClaimPlace:
    """A folder of a claim, as a place to copy from or to.

    Args:
        words: kubectl with its context and namespace.
        pod: that mounts the claim.
        folder: below the claim's root.
    """

    def __init__(self, words: list[str], pod: str, folder: str) -> None:
        self._words, self._pod = words, pod
        self._root = f"{MOUNT}/{folder}".rstrip("/")

    def files(self) -> dict[str, int]:
        found = json.loads(self._run(_LIST, self._root))
        return {path: size for path, size in found.items() if not path.endswith(".part")}

    def sha256(self, path: str) -> str:
        return self._run(_HASH, f"{self._root}/{path}").decode().strip()

    def chunks(self, path: str) -> Iterator[bytes]:
        command = self._command(_READ, f"{self._root}/{path}")
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            while chunk := process.stdout.read(CHUNK_BYTES):
                yield chunk
        if process.returncode:
            raise UserError(f"{path} cannot be read from the claim; see kubectl's message above")

    def put(self, path: str, source: Path) -> None:
        with source.open("rb") as file:
            done = subprocess.run(
                self._command(_WRITE, f"{self._root}/{path}"),
                stdin=file,
                capture_output=True,
                check=False,
            )
        if done.returncode:
            raise UserError(f"{path} cannot be written to the claim: {_last_line(done.stderr)}")

    def _command(self, script: str, path: str) -> list[str]:
        return [*self._words, "exec", "-i", self._pod, "--", "python3", "-c", script, path]

    def _run(self, script: str, path: str) -> bytes:
        done = subprocess.run(self._command(script, path), capture_output=True, check=False)
        if done.returncode:
            raise UserError(
                f"{shlex.quote(path)} of the helper pod {self._pod}: {_last_line(done.stderr)};"
                " the chart's right `dataCopy` is needed"
            )
        return done.stdout


def _last_line(text: bytes) -> str:
    return (text.decode(errors="replace").strip().splitlines() or ["no message"])[-1]


@contextmanager
def claim_place(
    cluster: KubernetesCluster, claim: str, folder: str, image: str
) -> Iterator[ClaimPlace]:
    """A claim's folder, for as long as a helper pod runs.

    Args:
        cluster: where the claim is.
        claim: its name.
        folder: below its root; may be empty.
        image: with Python, such as the one of the jobs.

    Raises:
        UserError: the pod cannot be made or does not start.
    """
    name = f"ifsq-copy-{secrets.token_hex(4)}"
    cluster.create_pod(_helper_pod(name, claim, image))
    try:
        _wait_until_running(cluster, name, claim)
        yield ClaimPlace(kubectl(cluster), name, folder)
    finally:
        cluster.core.delete_namespaced_pod(
            name, cluster.namespace, grace_period_seconds=0, _request_timeout=TIMEOUT
        )


def _wait_until_running(cluster: KubernetesCluster, name: str, claim: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    reason = "no node for it yet"
    while time.monotonic() < deadline:
        pods = cluster.list_pods(f"ifsq.dev/copy={name}")
        status = (pods[0].get("status") or {}) if pods else {}
        if status.get("phase") == "Running":
            return
        for condition in status.get("conditions") or []:
            if condition.get("status") == "False" and condition.get("message"):
                reason = condition["message"]
        for container in status.get("containerStatuses") or []:
            waiting = (container.get("state") or {}).get("waiting") or {}
            reason = waiting.get("message") or waiting.get("reason") or reason
        time.sleep(1)
    raise UserError(
        f"the helper pod for claim '{claim}' does not start after {_START_SECONDS:.0f} s: {reason}"
    )


def _helper_pod(name: str, claim: str, image: str) -> dict[str, Any]:
    """A pod that only sleeps, within the rules for restricted pods."""
    quantities = {"cpu": "500m", "memory": "512Mi"}
    container = {
        "name": "copy",
        "image": image,
        "command": ["sleep", str(_LIFETIME_SECONDS)],
        "resources": {"requests": quantities, "limits": quantities},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "claim", "mountPath": MOUNT}],
    }
    spec = {
        "containers": [container],
        "restartPolicy": "Never",
        "activeDeadlineSeconds": _LIFETIME_SECONDS,
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
    }
    labels = {"app.kubernetes.io/managed-by": "ifsq", "ifsq.dev/copy": name}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": spec,
    }
