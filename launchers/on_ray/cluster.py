"""Joining or starting Ray, with the settings every launcher of this project needs."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psutil

from data_pipelines.errors import UserError
from launchers.on_ray.private import private_ray

logger = logging.getLogger(__name__)

_STARTS = 3
_TOO_SLOW = "timed out during startup"
"""What Ray says when its own node has not registered after 30 s."""

_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    # How long a worker of a broken group tries to close its communication before it is ended.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "3",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "GRPC_DNS_RESOLVER": "native",
    "THP_MEM_ALLOC_ENABLE": "1",  # see ifsq_train/__init__.py
}


def import_ray() -> Any:
    """Ray, imported with the project's environment settings (the user's own win)."""
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import ray

    return ray


@contextmanager
def ray_session(address: str | None, *, min_cpus: int) -> Iterator[Any]:
    """Ray for the duration of a block: the one already running, `address`, or a local one.

    Args:
        address: cluster to join; None is the one RAY_ADDRESS names, or else a new one on this
            machine, which listens on loopback and asks for a token (`private_ray`). A cluster
            that is joined is met as the environment says (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH).
        min_cpus: CPU slots a local one has at least, so that small machines can hold a group.

    Raises:
        UserError: no cluster answers at `address`.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    address = address or os.environ.get("RAY_ADDRESS")
    with ExitStack() as stack:
        if address is None:
            logger.info("starting Ray on this machine (10 to 30 s)")
            address = "local"
            options |= stack.enter_context(private_ray())
            cpus = max(min_cpus, os.cpu_count() or 1)
            options |= {"num_cpus": cpus, "include_dashboard": False}
        else:
            logger.info("joining the Ray cluster at %s", address)
        try:
            _start(ray, address, options)
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster lets this program in at '{address}': check the address, and the"
                " token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH); or leave --address out to start a"
                " local one"
            ) from error
        stack.callback(ray.shutdown)
        yield ray


def _start(ray: Any, address: str, options: dict[str, Any]) -> None:
    """``ray.init``, again if a Ray of this machine comes up too slowly for itself.

    A raylet gives each of its agents 15 s to write its port, whatever the settings
    (src/ray/raylet/node_manager.cc, WaitForDashboardAgentPorts), and aborts if one needs longer, as
    happens on a busy machine or with packages on a slow disk. By the next start they are in memory.

    Raises:
        ConnectionError: no cluster at `address`.
        UserError: the local Ray did not start in `_STARTS` tries.
    """
    for number in range(1, _STARTS + 1):
        before = _ray_processes()
        try:
            ray.init(address=address, **options)
            return
        except ConnectionError:
            raise
        except Exception as error:
            if address != "local" or _TOO_SLOW not in str(error):
                raise
            for process in _ray_processes() - before:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            logger.warning("Ray did not come up in time (%d of %d tries)", number, _STARTS)
    raise UserError(
        f"Ray did not come up on this machine in {_STARTS} tries: its processes took longer than"
        " Ray waits for them (15 s); run this again when the machine is less busy"
    )


def _ray_processes() -> set[psutil.Process]:
    """Ray's programs below this process."""
    found = set[psutil.Process]()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if any("/ray/" in word for word in child.cmdline()):
                found.add(child)
    return found
