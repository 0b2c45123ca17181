"""Following a job through a Ray job server that goes away, against a server of Ray's answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from data_pipelines.errors import UserError
from launchers.jobs.verdict import JobFailed
from launchers.on_ray import jobs
from launchers.on_ray.jobs import RayCluster
from tests.support.ports import free_ports


class JobServerOnPaper:
    """Answers as Ray's dashboard does; stops and starts again on the same port."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.jobs: dict[str, dict[str, Any]] = {}
        self.output: dict[str, str] = {}
        self.status: int | None = None
        """HTTP status of every answer but the version's, if not None."""
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        paper = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = paper.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str) -> tuple[int, bytes]:
        if path == "/api/version":
            return 200, json.dumps({"ray_version": "2.50.0"}).encode()
        if self.status is not None:
            return self.status, b"the agent is away"
        name = path.split("/")[3]
        if name not in self.jobs:
            return 404, f"Job {name} does not exist".encode()
        if path.endswith("/logs"):
            return 200, json.dumps({"logs": self.output.get(name, "")}).encode()
        return 200, json.dumps(self.jobs[name]).encode()

    def set(self, name: str, status: str, output: str = "") -> None:
        self.output[name] = output
        self.jobs[name] = {
            "type": "SUBMISSION", "submission_id": name, "status": status, "message": "",
            "entrypoint": "ifsq", "start_time": 1,
        }  # fmt: skip


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServerOnPaper]:
    monkeypatch.setattr(jobs, "_POLL_SECONDS", 0.05)
    server = JobServerOnPaper()
    server.start()
    yield server
    server.stop()


def follow_with(cluster: RayCluster, act: Any) -> list[str]:
    """What is said while following job `tok`; `act` is called with every line."""
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        act(line)

    cluster.follow("tok", say)
    return said


def test_a_job_server_that_comes_back_loses_nothing(server: JobServerOnPaper) -> None:
    server.set("tok", "RUNNING", "one\ntwo\n")

    def act(line: str) -> None:
        if line == "one":
            server.stop()
        if "cannot be reached" in line:
            server.set("tok", "SUCCEEDED", "one\ntwo\nthree\n")
            server.start()

    said = follow_with(RayCluster(server.url), act)
    assert [line for line in said if not line.startswith("[tok]")] == ["one", "two", "three"]
    assert [line for line in said if "job server" in line] == [
        f"[tok] the Ray job server at {server.url} cannot be reached (connection refused);"
        " asking again",
        f"[tok] the Ray job server at {server.url} answers again",
    ]
    assert said[-1] == "three"


def test_errors_of_the_server_are_waited_for(server: JobServerOnPaper) -> None:
    server.set("tok", "RUNNING", "one\n")
    server.status = 500

    def act(line: str) -> None:
        if "cannot be reached" in line:
            assert "status code 500" in line
            server.status = None
            server.set("tok", "SUCCEEDED", "one\n")

    assert "one" in follow_with(RayCluster(server.url), act)


def test_a_job_server_that_stays_away_is_one_line(server: JobServerOnPaper) -> None:
    server.set("tok", "RUNNING")
    cluster = RayCluster(server.url, patience_seconds=0.3)
    with pytest.raises(UserError) as refused:
        follow_with(cluster, lambda _: server.stop())
    assert str(refused.value) == (
        f"the Ray job server at {server.url} was away for 0 s (connection refused); the job may"
        f" still run, look later: ifsq logs tok --follow --to ray --address {server.url}"
    )


def test_a_head_that_was_started_again_has_lost_the_job(server: JobServerOnPaper) -> None:
    server.set("tok", "RUNNING")
    cluster = RayCluster(server.url)
    with pytest.raises(JobFailed, match="does not know job 'tok' any more"):
        follow_with(cluster, lambda _: server.jobs.clear())
    with pytest.raises(UserError, match="no job 'tok' on this Ray cluster"):
        follow_with(cluster, lambda _: None)


def test_commands_do_not_wait_for_a_server_that_is_away(server: JobServerOnPaper) -> None:
    cluster = RayCluster(server.url)
    server.stop()
    for call in (
        cluster.list_jobs,
        lambda: cluster.state("tok"),
        lambda: cluster.logs("tok"),
        lambda: cluster.cancel("tok"),
    ):
        with pytest.raises(UserError, match=r"does not answer \(connection refused\)"):
            call()


@pytest.mark.parametrize(
    "address", ["ray://127.0.0.1:1", "nowhere", "http://[", "ftp://127.0.0.1:1", ""]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="no Ray job server answers at"):
        RayCluster(address)
