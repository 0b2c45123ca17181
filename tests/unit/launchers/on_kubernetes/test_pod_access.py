"""Into the pods of a job with a real kubectl: commands, exit codes, ranks, logs, the dashboard.

The pods' commands run on this machine, in `tests.support.pod_exec`, and their ports are here.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data_pipelines.errors import UserError
from launchers.cli.program import app
from launchers.on_kubernetes.cluster import KubernetesCluster
from tests.support.kube_api import Api
from tests.support.pod_exec import ExecLine
from tests.support.ports import free_ports

pytestmark = pytest.mark.heavy

JOB = "demo-tokenizer"


@pytest.fixture
def line(api: Api, monkeypatch: pytest.MonkeyPatch) -> ExecLine:
    """The line to an API server that knows exec; kubectl of the environment comes first."""
    line = ExecLine(api.port)
    api.line = line
    monkeypatch.setattr(api.kube, "token", None)  # kubectl sends none without TLS
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig()))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    return line


@pytest.fixture
def claim(api: Api, line: ExecLine, tmp_path: Path) -> Path:
    """The claim of a running job with a head and two workers of one rank each."""
    mount = tmp_path / "mnt"
    words = ["submit", "demo/tokenizer", "--image", "i", "--nodes", "2", "--no-wait"]
    done = CliRunner().invoke(app, [*words, "--storage", f"data:{mount}"])
    assert done.exit_code == 0, (done.output, done.exception)
    api.set_status(JOB, jobDeploymentStatus="Running", rayClusterName=f"{JOB}-ab1de")
    for role, pod in (("head", "h-1"), ("worker", "w-1"), ("worker", "w-2")):
        labels = {"ifsq.dev/job": JOB, "ifsq.dev/role": role}
        api.add_pod(pod, labels, phase="Running")
    run = mount / "runs" / "demo" / "tokenizer"
    (run / "logs").mkdir(parents=True)
    for rank, pod in ((0, "w-2"), (1, "w-1")):  # Ray gives ranks in an order of its own
        suffix = f"-{rank:05d}" if rank else ""
        target = [{"targets": [f"{pod}:9464"], "labels": {}}]
        (run / f"metrics_endpoint{suffix}.json").write_text(json.dumps(target))
        (run / "logs" / f"rank-{rank:05d}.log").write_text(f"first\nof rank {rank}\n")
    return mount


def run(*words: str) -> Any:
    return CliRunner().invoke(app, [*words])


def test_a_command_runs_in_the_head_pod_and_its_exit_code_is_the_programs(
    claim: Path, line: ExecLine, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run("shell", JOB, "--", "sh", "-c", "echo said; echo wrong >&2; exit 3")
    shown = capfd.readouterr()
    assert done.exit_code == 3
    assert shown.out == "said\n"
    assert "wrong\n" in shown.err
    pod, container, _ = line.asked[0]
    assert (pod, container) == ("h-1", "ray-head")


def test_a_rank_is_found_in_the_pod_it_runs_in(
    claim: Path, line: ExecLine, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("shell", JOB, "--rank", "0", "--", "echo", "here").exit_code == 0
    assert capfd.readouterr().out == "here\n"
    assert line.asked[-1] == ("w-2", "ray-worker", ["echo", "here"])
    wrong = run("shell", JOB, "--rank", "2", "--", "true")
    assert isinstance(wrong.exception, UserError)
    assert "has no running rank 2 (it asked for 2 workers)" in str(wrong.exception)


def test_a_missing_right_is_not_called_a_missing_rank(claim: Path, line: ExecLine) -> None:
    line.refused = "pods 'h-1' is forbidden: cannot create resource 'pods/exec'"
    done = run("shell", JOB, "--rank", "0", "--", "true")
    assert isinstance(done.exception, UserError)
    assert "kubectl cannot look into pod h-1 for rank 0" in str(done.exception)
    assert "cannot create resource 'pods/exec'" in str(done.exception)
    assert "right `shell` is needed" in str(done.exception)


def test_the_log_of_a_rank(claim: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("logs", JOB, "--rank", "1", "--tail", "1").exit_code == 0
    assert capfd.readouterr().out == "of rank 1\n"
    assert run("logs", JOB, "--rank", "0").exit_code == 0
    assert capfd.readouterr().out == "first\nof rank 0\n"
    wrong = run("logs", JOB, "--rank", "2")
    assert "has the ranks 0 to 1, found --rank 2" in str(wrong.exception)


def test_a_job_without_running_pods_says_where_the_log_lies(claim: Path, api: Api) -> None:
    api.end_pod("h-1", "Succeeded")
    done = run("logs", JOB, "--rank", "1")
    assert isinstance(done.exception, UserError)
    assert "has no running pods" in str(done.exception)
    assert "rank-00001.log of claim data" in str(done.exception)


@pytest.fixture
def token(api: Api) -> None:
    """KubeRay, raycluster_controller.go, createAuthSecret: the Secret is named as the cluster."""
    data = {"auth_token": base64.b64encode(b"the-token").decode()}
    secret = {"metadata": {"name": f"{JOB}-ab1de"}, "data": data}
    api.kube.create(("", "v1", "secrets"), api.namespace, secret, {})


@contextmanager
def answering(text: str) -> Iterator[int]:
    """A port that answers every HTTP request with a text."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


def three_ports() -> int:
    """The first of three that follow each other and that nothing listens on."""
    for first in free_ports(50):
        try:
            for port in (first + 1, first + 2):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
    raise RuntimeError("no three free ports")


def get(url: str) -> str:
    """An answer, as soon as the port is forwarded."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.1)


def test_the_dashboard_and_the_metrics_are_reached_until_ctrl_c(
    claim: Path, token: None, line: ExecLine
) -> None:
    """With a real kubectl: 8265 and KubeRay's 8080 of the head, the project's 9464 of a worker."""
    first = three_ports()
    with answering("dashboard") as ray, answering("ray_x 1") as metrics, answering("w 2") as worker:
        line.ports = {("h-1", 8265): ray, ("h-1", 8080): metrics, ("w-1", 9464): worker}
        words = [sys.executable, "-m", "launchers.cli", "dashboard", JOB, "--port", str(first)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            assert get(f"http://127.0.0.1:{first}/") == "dashboard"
            assert get(f"http://127.0.0.1:{first + 1}/metrics") == "ray_x 1"
            assert get(f"http://127.0.0.1:{first + 2}/metrics") == "w 2"
            program.send_signal(signal.SIGINT)
            shown = program.stdout.read()
    assert program.returncode == 0
    assert [text for text in shown.splitlines() if not text.startswith(("Forw", "Handl"))] == [
        f"Ray's dashboard: http://127.0.0.1:{first}  (Ctrl-C ends)",
        f"metrics of Ray on the head: http://127.0.0.1:{first + 1}/metrics",
        "token: the-token",
        f"metrics of worker w-1: http://127.0.0.1:{first + 2}/metrics",
    ]
    assert set(line.forwarded) == set(line.ports)


def test_a_dashboard_that_kubectl_may_not_forward(
    claim: Path, line: ExecLine, capfd: pytest.CaptureFixture[str]
) -> None:
    line.refused = "pods 'h-1' is forbidden: cannot create resource 'pods/portforward'"
    done = run("dashboard", JOB, "--port", str(three_ports()))
    assert done.exit_code == 1
    assert "cannot create resource 'pods/portforward'" in capfd.readouterr().err
    assert "which cannot be read" in done.output, "there is no token's Secret here"


def test_a_taken_port_is_refused_before_kubectl_runs(claim: Path) -> None:
    with answering("somebody else's") as taken:
        done = run("dashboard", JOB, "--port", str(taken - 1))
    assert isinstance(done.exception, UserError)
    assert f"port {taken} of this machine cannot be used" in str(done.exception)
    assert "choose 3 free ports with --port FIRST" in str(done.exception)


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["shell", JOB, "--", "true"], "you may not create pods/exec.*right `shell`"),
        (["logs", JOB, "--rank", "0"], "you may not create pods/exec.*right `shell`"),
        (["dashboard", JOB], "you may not create pods/portforward.*right `dashboard`"),
    ],
)
def test_a_missing_right_is_known_before_kubectl_runs(
    claim: Path, api: Api, monkeypatch: pytest.MonkeyPatch, words: list[str], what: str
) -> None:
    """The API server answers SelfSubjectAccessReviews of everybody; the stand-in knows none."""
    monkeypatch.setattr(KubernetesCluster, "may", lambda *_: False)
    done = run(*words)
    assert isinstance(done.exception, UserError)
    assert re.search(what, str(done.exception))
