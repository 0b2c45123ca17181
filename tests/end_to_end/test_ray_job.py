"""`ifsq submit --to ray` against a real Ray cluster with its job server."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launchers.cli.program import app
from tests.support.ports import free_ports
from tests.support.repository import REPOSITORY


@dataclass(frozen=True)
class Head:
    """A cluster of one node."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def story(self) -> str:
        """What became of it, for the message of a test that fails."""
        ended = self.process.poll()
        text = f"ray start {'runs' if ended is None else f'ended with {ended}'}:\n"
        return text + self.log.read_text(errors="replace")[-6_000:]


PORT_OPTIONS = (
    "--port", "--dashboard-port", "--dashboard-agent-listen-port", "--dashboard-agent-grpc-port",
    "--runtime-env-agent-port", "--metrics-export-port", "--ray-client-server-port",
    "--node-manager-port", "--object-manager-port",
)  # fmt: skip
"""All ports of a head: it ends when one of its agents finds its port taken."""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A cluster of one node as `ray start` makes it, on ports of its own."""
    binaries = Path(sys.executable).parent
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    # The job's `ifsq` is the one of this environment.
    env["PATH"] = f"{binaries}{os.pathsep}{env['PATH']}"
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        command = [binaries / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
        command += [f"{option}={port}" for option, port in ports.items()]
        command += [f"--temp-dir={folder}", "--num-cpus=2", "--disable-usage-stats"]
        log = Path(folder) / "head.log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
        head = Head(f"http://127.0.0.1:{ports['--dashboard-port']}", process, log)
        wait_until_it_answers(head)
        yield head
        process.terminate()
        process.wait(90)


def wait_until_it_answers(head: Head) -> None:
    deadline = time.monotonic() + 240
    while True:
        try:
            urllib.request.urlopen(f"{head.url}/api/version", timeout=5).close()
            return
        except OSError:
            assert head.process.poll() is None, head.story()
            assert time.monotonic() < deadline, head.story()
            time.sleep(0.5)


@pytest.mark.slow
def test_a_job_is_followed_to_its_failure_and_listed(head: Head, tmp_path: Path) -> None:
    target = ["--to", "ray", "--address", head.url]
    job = ["demo/tokenizer", f"data.url={tmp_path}/nothing", f"output={tmp_path}/run"]
    done = CliRunner().invoke(app, ["submit", *job, "--name", "lost", *target])
    assert done.exit_code == 1, f"{done.output}\n{done.exception}\n{head.story()}"
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
