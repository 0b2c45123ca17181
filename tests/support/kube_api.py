"""A Kubernetes API to test against, what acts on it, and the line to it that can be cut."""

from __future__ import annotations

import copy
import importlib.util
import selectors
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from ifsq_train.config.load import load_recipe
from launchers.jobs.request import JobRequest
from launchers.on_kubernetes.objects import RayJob
from launchers.on_kubernetes.profile import load_profile
from launchers.on_kubernetes.rayjob import build_rayjob

POD, RAYJOB = ("", "v1", "pods"), ("ray.io", "v1", "rayjobs")


def load_tool(shared_dir: Path, name: str) -> ModuleType:
    """A tool of the reference folder as a module."""
    folder = str(shared_dir / "tools")
    if folder not in sys.path:
        sys.path.append(folder)
    path = shared_dir / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


class Line:
    """A TCP connection to the API server that can be cut and mended."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut = True

    def mend(self) -> None:
        self._cut = False

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._cut:
                client.close()
                continue
            threading.Thread(target=self.begin, args=(client,), daemon=True).start()

    def begin(self, client: socket.socket) -> None:
        """Serve one connection to its end."""
        self._pump(client, socket.create_connection(("127.0.0.1", self._target_port)))

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        # Not select: it knows no descriptors beyond 1,023, which a long suite may reach.
        with client, server, selectors.DefaultSelector() as ends:
            ends.register(client, selectors.EVENT_READ, server)
            ends.register(server, selectors.EVENT_READ, client)
            while not self._cut:
                try:
                    for ready, _ in ends.select(0.05):
                        data = ready.fileobj.recv(65536)  # type: ignore[union-attr]
                        if not data:
                            return
                        ready.data.sendall(data)
                except OSError:
                    return  # one of the two has gone away


class Api:
    """The API server, with an operator's hands: statuses, pods and their output."""

    def __init__(self, server: Any, folder: Path, namespace: str = "team") -> None:
        self.kube, self.folder, self.namespace = server.kube, folder, namespace
        self.port = server.server_port
        self.line = Line(server.server_port)

    def kubeconfig(self, token: str = "right") -> Path:
        path = self.folder / f"kubeconfig-{token}"
        cluster = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.line.port}"}}
        user = {"name": "u", "user": {"token": token}}
        context = {
            "name": "test",
            "context": {"cluster": "c", "user": "u", "namespace": self.namespace},
        }
        path.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [cluster],
                    "users": [user],
                    "contexts": [context],
                    "current-context": "test",
                }
            )
        )
        return path

    def set_status(self, name: str, **status: Any) -> None:
        self._change((*RAYJOB, self.namespace, name), status)

    def wait_for_job(self, name: str) -> None:
        deadline = time.monotonic() + 20
        while (*RAYJOB, self.namespace, name) not in self.kube.obj:
            assert time.monotonic() < deadline, f"job {name} was not created"
            time.sleep(0.05)

    def start_submitter(self, name: str, pod: str) -> Path:
        """The pod whose output is the job's; returns its log file."""
        log = self.folder / f"{pod}.log"
        log.touch()
        self.kube.logs[self.namespace, pod] = str(log)
        labels = {"job-name": name}
        body = {"metadata": {"name": pod, "labels": labels}, "status": {"phase": "Running"}}
        body["spec"] = {"containers": [{"name": "c", "image": "x"}]}
        self.kube.create(POD, self.namespace, body, {})
        return log

    def warn(self, pod: str, message: str, reason: str = "Failed", kind: str = "Pod") -> None:
        """An event as today's recorders make it: with `eventTime`, without `lastTimestamp`."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        event = {
            "metadata": {"generateName": "event-"},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "eventTime": now,
            "reportingComponent": "test",
            "involvedObject": {"kind": kind, "name": pod},
        }
        self.kube.create(("", "v1", "events"), self.namespace, event, {})

    def add_pod(self, pod: str, labels: dict[str, str], **status: Any) -> None:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "labels": labels}}
        name = f"ray-{labels.get('ifsq.dev/role', 'node')}"
        body |= {"spec": {"containers": [{"name": name, "image": "x"}]}, "status": status}
        self.kube.create(POD, self.namespace, body, {})
        self._change((*POD, self.namespace, pod), status)

    def remove(self, name: str) -> None:
        """Someone deletes the job."""
        self.kube.delete((*RAYJOB, self.namespace, name), {})

    def restart(self, down: float, unready: float, code: int) -> None:
        """The API server goes away, comes back, and for a while gives nobody any rights."""
        url = f"http://127.0.0.1:{self.port}/__restart?down={down}&unready={unready}&code={code}"
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as answer:
            answer.read()

    def end_pod(self, pod: str, phase: str) -> None:
        self._change((*POD, self.namespace, pod), {"phase": phase})

    def _change(self, key: tuple[str, ...], status: dict[str, Any]) -> None:
        with self.kube.cv:
            changed = copy.deepcopy(self.kube.obj[key])
            changed["status"] = {**changed.get("status", {}), **status}
            self.kube.obj[key] = changed
            self.kube.emit("MODIFIED", key, changed)


def make_request(**changes: Any) -> JobRequest:
    values: dict[str, Any] = {
        "name": "tok",
        "recipe": load_recipe("demo/tokenizer"),
        "nodes": 2,
        "image": "registry.example/ifsq:1",
        "claim": "data",
    }
    return JobRequest(**values | changes)


def make_job(profile: str = "cpu", **changes: Any) -> RayJob:
    request = make_request(**changes)
    return build_rayjob(request, load_profile(profile, request.gpus_per_node), "team")


def in_background(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def run_through(api: Api, name: str, output: str = "step 1\nstep 2\n") -> None:
    """What a cluster does with a job that works."""
    api.wait_for_job(name)
    api.set_status(name, jobDeploymentStatus="Initializing")
    time.sleep(0.5)
    log = api.start_submitter(name, f"{name}-s1")
    api.set_status(name, jobDeploymentStatus="Running", jobStatus="RUNNING")
    log.write_text(output)
    time.sleep(0.3)
    api.end_pod(f"{name}-s1", "Succeeded")
    api.set_status(name, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED")
