"""`ifsq submit --to ray` against a real Ray cluster with its job server."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml
from typer.testing import CliRunner

from ifsq_train.plugins.files import forget_files
from ifsq_train.plugins.registry import forgotten_afterwards
from launchers.cli.program import app
from tests.plugins.runs import VIEW, recipe, tokenizer_task
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


STARTED, GAVE_UP = "Ray runtime started", "timed out during startup"
STARTS = 3
"""A raylet aborts if an agent takes longer than 15 s to start, which no setting changes; a busy
machine may need a second try, for which the agents' modules are in memory."""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """A cluster of one node as `ray start` makes it, on ports of its own."""
    log = tmp_path_factory.mktemp("head") / "head.log"
    for _ in range(STARTS):
        # Paths of sockets are short.
        with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
            head = start_head(Path(folder), log)
            try:
                if has_started(head):
                    yield head
                    return
            finally:
                end(head.process)
    raise AssertionError(log.read_text(errors="replace"))


def start_head(folder: Path, log: Path) -> Head:
    binaries = Path(sys.executable).parent
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(REPOSITORY)}
    # The job's `ifsq` is the one of this environment.
    env["PATH"] = f"{binaries}{os.pathsep}{env['PATH']}"
    ports = dict(zip(PORT_OPTIONS, free_ports(len(PORT_OPTIONS)), strict=True))
    command = [binaries / "ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1"]
    command += [f"{option}={port}" for option, port in ports.items()]
    command += [f"--temp-dir={folder}", "--num-cpus=2", "--disable-usage-stats"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env)
    return Head(f"http://127.0.0.1:{ports['--dashboard-port']}", process, log)


def has_started(head: Head) -> bool:
    """Wait until the node is there (the dashboard answers long before); False if it gave up."""
    deadline = time.monotonic() + 180
    while STARTED not in (said := head.log.read_text(errors="replace")):
        # The program may hang after it has given up.
        if head.process.poll() is not None or GAVE_UP in said:
            return False
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def end(process: subprocess.Popen[bytes]) -> None:
    """Also what it started."""
    children = (
        psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    )
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


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


@pytest.mark.slow
def test_a_job_trains_on_a_plug_in_that_the_cluster_has_never_seen(
    head: Head, tmp_path: Path
) -> None:
    """`--plugin FILE` travels with the job: driver and workers load it, the file itself is gone."""
    idea = tmp_path / "elsewhere" / "my_shapes.py"
    idea.parent.mkdir()
    shutil.copy(REPOSITORY / "tests" / "plugins" / "shapes.py", idea)
    source = {"kind": "shapes", "num_images": 12, "image_size": 16}
    data = {"kind": "images", "url": source, "view": VIEW}
    task = tokenizer_task({"kind": "ifsq", "levels": [5, 5, 5]})
    values = recipe(Path("runs/idea"), data, task, "autoencoder")
    file = tmp_path / "idea.yaml"
    file.write_text(yaml.safe_dump(values))
    words = ["submit", str(file), "--plugin", str(idea), "--name", "idea", "--no-wait"]
    where = ["--to", "ray", "--address", head.url]
    with forgotten_afterwards():
        sent = CliRunner().invoke(app, [*words, *where, "--workdir", str(tmp_path)])
    forget_files()
    assert sent.exit_code == 0, f"{sent.output}\n{sent.exception}\n{head.story()}"
    shutil.rmtree(idea.parent)
    done = CliRunner().invoke(app, ["logs", "idea", "--follow", *where])
    assert done.exit_code == 0, f"{done.output}\n{done.exception}\n{head.story()}"
    result = json.loads((tmp_path / "runs/idea/result.json").read_text())
    assert result["steps"] == values["steps"]
    assert math.isfinite(result["final_loss"])


def test_no_cluster_is_one_clear_line() -> None:
    done = CliRunner().invoke(app, ["jobs", "--to", "ray", "--address", "http://127.0.0.1:1"])
    assert "no Ray job server answers" in str(done.exception)


def test_options_of_kubernetes_are_refused_elsewhere() -> None:
    flags = ["submit", "demo/tokenizer", "--to", "ray", "--queue", "q"]
    assert "--queue is for --to k8s" in str(CliRunner().invoke(app, flags).exception)
