"""`ifsq submit --to ray` against a real Ray cluster with its job server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launchers.cli.program import app
from tests.support.repository import REPOSITORY


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A cluster of one node as `ray start` makes it, on ports of its own."""
    binaries = Path(sys.executable).parent
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    # The job's `ifsq` is the one of this environment.
    env["PATH"] = f"{binaries}{os.pathsep}{env['PATH']}"
    port, dashboard, agent, metrics, client = free_ports(5)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = [binaries / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--temp-dir={folder}"]
        command += [f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}"]
        command += [f"--ray-client-server-port={client}", "--num-cpus=2", "--disable-usage-stats"]
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            head = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        url = f"http://127.0.0.1:{dashboard}"
        wait_until_it_answers(f"{url}/api/version", head, log)
        yield url
        head.terminate()
        head.wait(90)


def wait_until_it_answers(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)


@pytest.mark.slow
def test_a_job_is_followed_to_its_failure_and_listed(address: str, tmp_path: Path) -> None:
    target = ["--to", "ray", "--address", address]
    job = ["demo/tokenizer", f"data.url={tmp_path}/nothing", f"output={tmp_path}/run"]
    done = CliRunner().invoke(app, ["submit", *job, "--name", "lost", *target])
    assert done.exit_code == 1, done.output
    assert "job 'lost' failed" in done.output
    assert "holds no dataset" in done.output or "manifest.json" in done.output
    again = CliRunner().invoke(app, ["submit", *job, "--name", "lost", *target])
    assert "a job 'lost' exists already" in str(again.exception)
    listed = CliRunner().invoke(app, ["jobs", *target])
    assert "lost" in listed.output
    assert "failed" in listed.output
    shown = CliRunner().invoke(app, ["status", "lost", *target])
    assert shown.exit_code == 1
    logs = CliRunner().invoke(app, ["logs", "lost", "--tail", "1", *target])
    assert len(logs.output.splitlines()) == 1
    missing = CliRunner().invoke(app, ["cancel", "none", *target])
    assert "no job 'none'" in str(missing.exception)


def test_no_cluster_is_one_clear_line() -> None:
    done = CliRunner().invoke(app, ["jobs", "--to", "ray", "--address", "http://127.0.0.1:1"])
    assert "no Ray job server answers" in str(done.exception)


def test_options_of_kubernetes_are_refused_elsewhere() -> None:
    flags = ["submit", "demo/tokenizer", "--to", "ray", "--queue", "q"]
    assert "--queue is for --to k8s" in str(CliRunner().invoke(app, flags).exception)
