"""Nobody but this user's own processes can use a Ray that the project starts on a machine."""

import contextlib
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launchers.on_ray.cluster import ray_session

pytestmark = pytest.mark.slow

_JOIN = """
import sys, ray
try:
    ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
    print("joined and ran", ray.get(ray.remote(lambda: 5).remote()))
except ConnectionError:
    print("refused")
"""
_CONNECT = """
import socket, sys
for port in sys.argv[2:]:
    try:
        socket.create_connection((sys.argv[1], int(port)), timeout=2).close()
        print("connected", port)
    except OSError:
        print("refused", port)
"""


@pytest.fixture(scope="module")
def session() -> Iterator[tuple[str, Path]]:
    """Address of a running local Ray, and its token file."""
    with ray_session(None, min_cpus=1) as ray:
        address = ray.get_runtime_context().gcs_address
        yield address, Path(os.environ["RAY_AUTH_TOKEN_PATH"])


def _processes() -> list[psutil.Process]:
    return [psutil.Process(), *psutil.Process().children(recursive=True)]


def _ports() -> list[tuple[str, int]]:
    """What the session's processes listen on."""
    found = []
    for process in _processes():
        with contextlib.suppress(psutil.Error):
            sockets = process.net_connections("tcp")
            found += [tuple(s.laddr) for s in sockets if s.status == psutil.CONN_LISTEN]
    return found


def test_every_port_is_on_loopback(session: tuple[str, Path]):
    ports = _ports()
    assert len(ports) >= 4
    assert {host.removeprefix("::ffff:") for host, _ in ports} == {"127.0.0.1"}


@pytest.mark.parametrize("mode", ["disabled", "wrong token"])
def test_a_process_of_this_machine_without_the_token_is_refused(
    session: tuple[str, Path], mode: str
):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    # So that Ray asks at the loopback address, where the session listens.
    environment |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    if mode == "wrong token":
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    command = [sys.executable, "-c", _JOIN, session[0]]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert done.stdout.strip() == "refused", done.stderr


def test_another_network_namespace_reaches_no_port(session: tuple[str, Path]):
    with _other_namespace() as (name, address):
        ports = [str(port) for _, port in _ports()]
        command = ["ip", "netns", "exec", name, sys.executable, "-c", _CONNECT, address, *ports]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [f"refused {port}" for port in ports]


def test_the_token_is_only_in_its_file(session: tuple[str, Path]):
    path = session[1]
    token = path.read_text()
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for process in _processes():
        with contextlib.suppress(psutil.Error):
            assert token not in " ".join(process.cmdline())
            assert token not in str(process.environ())
    for log in path.parent.rglob("*"):
        if log.is_file() and not log.is_symlink() and log != path:
            assert token.encode() not in log.read_bytes()


@contextlib.contextmanager
def _other_namespace() -> Iterator[tuple[str, str]]:
    """A network namespace with a wire to this one; its name and this end's address."""
    name, near, far = f"ifsq{os.getpid()}", f"ia{os.getpid()}", f"ib{os.getpid()}"
    steps = [
        f"ip netns add {name}",
        f"ip link add {near} type veth peer name {far} netns {name}",
        f"ip addr add 198.51.100.1/30 dev {near}",
        f"ip link set {near} up",
        f"ip netns exec {name} ip addr add 198.51.100.2/30 dev {far}",
        f"ip netns exec {name} ip link set {far} up",
    ]
    try:
        for step in steps:
            try:
                subprocess.run(step.split(), capture_output=True, check=True)
            except (OSError, subprocess.CalledProcessError):
                pytest.skip(f"this machine does not let us: {step}")
        yield name, "198.51.100.1"
    finally:
        for step in (f"ip link del {near}", f"ip netns del {name}"):
            with contextlib.suppress(OSError):
                subprocess.run(step.split(), capture_output=True, check=False)
