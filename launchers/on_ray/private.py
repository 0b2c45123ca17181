"""What makes a Ray on this machine this user's alone: a token, loopback, a folder of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from data_pipelines.storage.private import make_private

_KEPT_SESSIONS = 2
"""Folders of ended sessions that are kept, for their logs."""
_LONGEST_FOLDER = 36
"""Characters; the name of a Unix socket below it must stay under the system's 107."""


@contextmanager
def private_ray() -> Iterator[dict[str, Any]]:
    """Settings of a Ray that nobody else can use, for the duration of a block.

    Ray's processes then demand a random token of 256 bits, which is in a file of mode 0600 whose
    path (never the token) is in their environment, and listen on loopback only. Their folder, with
    logs and Unix sockets, has mode 0700; those of sessions that ended are deleted, but for the
    newest two.

    Yields:
        Further arguments for ``ray.init``.
    """
    folder = _session_parent()
    make_private(folder)
    _prune(folder)
    token = folder / f"token-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME") or _loopback_name(),
    }
    try:
        with _environment(environment, unset=("RAY_AUTH_TOKEN",)), _on_loopback():
            # One folder further down: Ray opens its own to everybody.
            yield {"_temp_dir": str(folder / "ray")}
    finally:
        token.unlink(missing_ok=True)


def _session_parent() -> Path:
    chosen = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    folder = Path(chosen) / f"ifsq-ray-{os.getuid()}"
    if len(str(folder)) > _LONGEST_FOLDER:
        folder = Path("/tmp") / folder.name
    return folder


def _loopback_name() -> str:
    """The network interface that has 127.0.0.1."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == "127.0.0.1" for address in addresses):
            return name
    return "lo"


@contextmanager
def _environment(values: dict[str, str], unset: tuple[str, ...]) -> Iterator[None]:
    """Environment variables for a block, which Ray's processes inherit and its core reads anew."""
    before = {name: os.environ.get(name) for name in (*values, *unset)}
    for name in unset:
        os.environ.pop(name, None)
    os.environ.update(values)
    _read_anew()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _read_anew()


def _read_anew() -> None:
    """Ray's core keeps the mode and the token it has seen first."""
    from ray._raylet import AuthenticationTokenLoader, Config  # pyright: ignore

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray's nodes take 127.0.0.1 for their address, as on systems where it knows no clusters.

    Asked for 127.0.0.1 by argument, Ray would replace it by an address others can reach.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _prune(folder: Path) -> None:
    """Delete tokens and session folders of processes that are gone."""
    ended = [
        path
        for path in (folder / "ray").glob("session_*_*")
        if not path.is_symlink() and not _is_alive(path.name.rpartition("_")[2])
    ]
    ended.sort(key=lambda path: path.name)
    for path in ended[: max(0, len(ended) - _KEPT_SESSIONS)]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("token-*"):
        if not _is_alive(path.name.split("-")[1]):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_alive(pid: str) -> bool:
    return pid.isdigit() and psutil.pid_exists(int(pid))
