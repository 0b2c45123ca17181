"""A Ray cluster of several nodes on this machine, of processes that a test owns and may kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.support.ports import free_ports

TAG = "IFSQ_TEST_CLUSTER"
"""Environment variable by which the processes of a cluster, and no others, are found."""


@dataclass
class RayNodes:
    """A head and worker nodes; every process carries `tag` in its environment."""

    tag: str
    port: int
    folder: Path
    environment: dict[str, str]
    head: subprocess.Popen[bytes] = field(init=False)
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """For `ray.init`."""
        return f"127.0.0.1:{self.port}"

    def start(self, num_workers: int, cpus_per_node: int) -> None:
        """Start the head (which takes no work) and the workers, and wait for the head."""
        options = [
            "--head", f"--port={self.port}", "--num-cpus=0", "--include-dashboard=false",
            f"--temp-dir={self.folder}",
        ]  # fmt: skip
        self.head = self._start(options)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    break
            time.sleep(0.2)
        for _ in range(num_workers):
            self.add_worker(cpus_per_node)

    def add_worker(self, cpus: int) -> None:
        """One more node."""
        self.workers.append(self._start([f"--address={self.address}", f"--num-cpus={cpus}"]))

    def kill_raylet(self, worker: subprocess.Popen[bytes]) -> bool:
        """SIGKILL the raylet of a worker node and what is left of it; False if it has none yet."""
        found = [p for p in _children(worker.pid) if "raylet" in _name(p)]
        if not found:
            return False
        found[0].kill()
        self.workers.remove(worker)
        for process in _children(worker.pid):
            _kill(process.pid)
        _kill(worker.pid)
        worker.wait()
        return True

    def replace_ended(self, cpus: int) -> None:
        """Start again what ended by itself."""
        for worker in [worker for worker in self.workers if worker.poll() is not None]:
            self.workers.remove(worker)
            self.add_worker(cpus)

    def actors(self, title: str) -> list[int]:
        """Processes of actors whose class has this name."""
        return tagged(self.tag, f"ray::{title}")

    def stop(self) -> None:
        """End everything that carries the tag."""
        for _ in range(20):
            left = tagged(self.tag, "")
            if not left:
                return
            for pid in left:
                _kill(pid)
            for process in [self.head, *self.workers]:
                process.poll()
            time.sleep(0.1)

    def _start(self, options: list[str]) -> subprocess.Popen[bytes]:
        ray = Path(sys.executable).parent / "ray"
        command = [
            str(ray), "start", *options, "--node-ip-address=127.0.0.1", "--block",
            "--object-store-memory=100000000", "--disable-usage-stats",
        ]  # fmt: skip
        with (self.folder.parent / "ray-start.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=self.environment | {TAG: self.tag}
            )


@contextmanager
def ray_nodes(
    folder: Path, num_workers: int, cpus_per_node: int, environment: dict[str, str]
) -> Iterator[RayNodes]:
    """A cluster for the time of a block."""
    (port,) = free_ports(1)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"RAY_AUTH_MODE": "disabled", "OMP_NUM_THREADS": "1"} | environment
    # Short heartbeats on the head, so that a dead node is known in seconds.
    settings |= {
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_failure_threshold": "8",
    }
    nodes = RayNodes(f"{os.getpid()}-{port}", port, folder / "r", dict(os.environ) | settings)
    try:
        nodes.start(num_workers, cpus_per_node)
        yield nodes
    finally:
        nodes.stop()


def tagged(tag: str, title: str) -> list[int]:
    """Processes whose environment has the tag and whose command line the title."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            is_tagged = f"{TAG}={tag}".encode() in (folder / "environ").read_bytes().split(b"\0")
            is_titled = title.encode() in (folder / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended, or is another user's
        if is_tagged and is_titled:
            found.append(int(folder.name))
    return found


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
