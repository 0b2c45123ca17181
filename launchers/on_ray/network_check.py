"""Whether the fast network that the nodes promise is there, before a slow run begins.

NCCL falls back to TCP sockets without a word where it finds no usable card; a run is then several
times slower and nothing has failed.
"""

from __future__ import annotations

import ctypes
import logging
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path

from data_pipelines.errors import UserError
from launchers.jobs.request import NETWORK_MISSING_VARIABLE, NETWORK_VARIABLE

logger = logging.getLogger(__name__)

_VERBS, _FABRIC = "libibverbs.so.1", "libfabric.so.1"
_OFI_PLUGINS = ("libnccl-net-ofi.so", "libnccl-net.so")
_ENOUGH_LOCKED_BYTES = 64 << 30


def check_network(root: Path = Path("/")) -> None:
    """Check what ``IFSQ_NETWORK`` promises; nothing where it is not set.

    Args:
        root: folder that `/sys` and `/dev` are below.

    Raises:
        UserError: it is not usable, and ``IFSQ_NETWORK_MISSING`` is not ``warn``.
    """
    kind = os.environ.get(NETWORK_VARIABLE)
    if not kind:
        return
    faults = list(network_faults(kind, root))
    if not faults:
        return
    text = (
        f"the profile promises {kind} but NCCL would fall back to sockets on"
        f" {os.uname().nodename}: {'; '.join(faults)}"
    )
    if os.environ.get(NETWORK_MISSING_VARIABLE) == "warn":
        logger.warning("%s", text)
        return
    raise UserError(f"{text}; mend the nodes, or set network.when_missing: warn in the profile")


def network_faults(
    kind: str, root: Path, can_load: Callable[[str], bool] | None = None
) -> Iterator[str]:
    """What keeps NCCL from using the network.

    Args:
        kind: rdma or efa.
        root: folder that `/sys` and `/dev` are below.
        can_load: whether a shared library can be loaded.
    """
    can_load = can_load or _can_load
    if os.environ.get("NCCL_IB_DISABLE") == "1" and kind == "rdma":
        yield "NCCL_IB_DISABLE=1 turns it off"
    if os.environ.get("NCCL_NET", "").lower() == "socket":
        yield "NCCL_NET=Socket turns it off"
    if not can_load(_VERBS):
        yield f"the image has no {_VERBS} (Debian: libibverbs1, ibverbs-providers)"
    if not list((root / "dev/infiniband").glob("uverbs*")):
        yield "no /dev/infiniband/uverbs* in the container; ask for the device plugin's resource"
    elif kind == "rdma" and not list(_active_ports(root)):
        yield "no port of /sys/class/infiniband is ACTIVE"
    if kind == "efa":
        if not can_load(_FABRIC):
            yield f"the image has no {_FABRIC}"
        if not any(can_load(name) for name in _OFI_PLUGINS):
            yield f"the image has no {_OFI_PLUGINS[0]} (aws-ofi-nccl)"
    yield from _memlock_faults()


def _active_ports(root: Path) -> Iterator[Path]:
    for state in (root / "sys/class/infiniband").glob("*/ports/*/state"):
        if "ACTIVE" in state.read_text():
            yield state


def _memlock_faults() -> Iterator[str]:
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft != resource.RLIM_INFINITY and soft < _ENOUGH_LOCKED_BYTES:
        yield (
            f"only {soft:,} bytes may be locked (ulimit -l), RDMA pins what it sends: set"
            " LimitMEMLOCK=infinity for the nodes' container runtime"
        )


def _can_load(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True
