"""Joining or starting Ray, with the settings every launcher of this project needs."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from data_pipelines.errors import UserError
from launchers.on_ray.private import private_ray

logger = logging.getLogger(__name__)

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
        _init(ray, address, options)
        stack.callback(ray.shutdown)
        yield ray


def _init(ray: Any, address: str, options: dict[str, Any]) -> None:
    """`ray.init`, once more where Ray's own 30 seconds were not enough on a busy machine."""
    for attempt in (1, 2):
        try:
            ray.init(address=address, **options)
            return
        except ConnectionError as error:
            raise UserError(
                f"no Ray cluster lets this program in at '{address}': check the address, and the"
                " token (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH); or leave --address out to start a"
                " local one"
            ) from error
        except Exception as error:  # Ray has no class of its own for this
            if "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            if attempt == 2:
                raise UserError(
                    "Ray did not start on this machine within 30 seconds, twice: it is short of"
                    " processors or memory; end other work and run the command again"
                ) from error
            logger.warning("Ray did not start within 30 seconds, starting it once more")
