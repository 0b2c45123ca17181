"""Checks of the machine before the first run: what was found, whether it will do, what to change.

Nothing is installed, started for longer than a moment, or left behind.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Status = Literal["ok", "warning", "problem"]

GIB = 2**30
MIN_OPEN_FILES = 8192
"""Ray keeps several connections per worker; its documentation asks for 65,536 on large nodes."""
MIN_SHARED_MEMORY = 2 * GIB
MIN_DISK = 20 * GIB
MIN_MEMORY = 6 * GIB
DRIVERS = {13: 580, 12: 525}
"""Oldest NVIDIA driver for a CUDA major version (CUDA compatibility guide, minor-version rule)."""


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: what was looked at.
        status: ok, warning (works, but not everything or not well) or problem.
        found: in words.
        remedy: what to do; empty where nothing is.
    """

    name: str
    status: Status
    found: str
    remedy: str = ""


def examine(folder: Path) -> list[Check]:
    """All checks, in the order a newcomer meets what they are about.

    Args:
        folder: where runs will be written.
    """
    checks: list[Callable[[], Check]] = [
        _python,
        _torch,
        _gpus,
        _processors,
        _memory,
        _shared_memory,
        _open_files,
        lambda: _disk(folder),
        _loopback,
        _ray,
        _dali,
        _compiler,
        _object_storage,
    ]
    return [check() for check in checks]


def _python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    if (3, 11) <= sys.version_info[:2] < (3, 13):
        return Check("Python", "ok", found)
    return Check("Python", "problem", found, "use Python 3.11 or 3.12")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _torch() -> Check:
    import torch

    cuda = torch.version.cuda
    return Check("torch", "ok", f"{torch.__version__}, {f'CUDA {cuda}' if cuda else 'CPU build'}")


def _driver() -> tuple[str, list[str]] | None:
    """Version of the NVIDIA driver and the GPUs' names, as nvidia-smi gives them."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=driver_version,name", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return (rows[0][0], [name for _, name in rows]) if rows else None


def _gpus() -> Check:
    import torch

    driver = _driver()
    if driver is None:
        found = "none (no NVIDIA driver answers); everything runs on the CPU"
        return Check("GPUs", "ok", found)
    version, names = driver
    found = f"{len(names)} x {names[0]}, driver {version}"
    if torch.version.cuda is None:
        remedy = "install a CUDA build of torch to use them (docs: installation)"
        return Check("GPUs", "warning", f"{found}, but torch is a CPU build", remedy)
    needed = DRIVERS.get(int(torch.version.cuda.split(".")[0]))
    if needed is not None and int(version.split(".")[0]) < needed:
        remedy = (
            f"CUDA {torch.version.cuda} needs driver {needed} or newer; update the driver, or"
            " install NVIDIA's cuda-compat package for this CUDA version (data-centre GPUs)"
        )
        return Check("GPUs", "problem", found, remedy)
    if not torch.cuda.is_available():
        remedy = (
            "torch cannot open them; is the process allowed to (container runtime, /dev/nvidia*)?"
        )
        return Check("GPUs", "problem", found, remedy)
    return Check("GPUs", "ok", f"{found}; give --gpus-per-worker 1 to use them")


def _processors() -> Check:
    count = len(os.sched_getaffinity(0))
    if count >= 2:
        return Check("CPUs", "ok", f"{count} usable")
    return Check("CPUs", "warning", f"{count} usable", "the demo's two workers will share one CPU")


def memory_limit() -> int:
    """Bytes this process may use: the machine's memory, or less where a cgroup says so."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(path).read_text()))
        except (OSError, ValueError):
            continue
    return total


def _memory() -> Check:
    total = memory_limit()
    found = f"{total / GIB:.1f} GiB"
    if total >= MIN_MEMORY:
        return Check("memory", "ok", found)
    return Check("memory", "warning", found, f"the demo needs {MIN_MEMORY // GIB} GiB")


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return Check("/dev/shm", "problem", "missing", "mount a tmpfs there; Ray and NCCL need it")
    found = f"{free / GIB:.1f} GiB free"
    if free >= MIN_SHARED_MEMORY:
        return Check("/dev/shm", "ok", found)
    remedy = "Ray's objects go to disk instead; start the container with --shm-size=8g or more"
    return Check("/dev/shm", "warning", found, remedy)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = f"{soft} (at most {hard})"
    if soft >= MIN_OPEN_FILES:
        return Check("open files", "ok", found)
    remedy = f"Ray and large datasets need more: ulimit -n {min(65536, hard)}"
    if hard < MIN_OPEN_FILES:
        remedy = "raise the hard limit (limits.conf, or --ulimit nofile=65536 of the container)"
    return Check("open files", "warning", found, remedy)


def _disk(folder: Path) -> Check:
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return Check("disk", "problem", f"{place}: {error.strerror}", "choose a writable folder")
    free = shutil.disk_usage(place).free
    found = f"{free / GIB:.0f} GiB free at {place}"
    if free >= MIN_DISK:
        return Check("disk", "ok", found)
    return Check("disk", "warning", found, "checkpoints and shards need room; free some")


def _loopback() -> Check:
    """Whether processes of this machine can reach each other as Ray's do."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=5),
        ):
            return Check("loopback", "ok", "a port can be opened and reached")
    except OSError as error:
        remedy = "Ray needs TCP on 127.0.0.1; look for a firewall or sandbox rule"
        return Check("loopback", "problem", str(error), remedy)


def _ray() -> Check:
    version = _version("ray")
    if version is None:
        return Check("Ray", "problem", "not installed", "pip install ifsq-train again")
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Check("Ray", "ok", f"{version}; a local one is started when it is needed")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return Check("Ray", "ok", f"{version}; {address} answers")
    except (OSError, ValueError) as error:
        remedy = "start that cluster, correct RAY_ADDRESS, or unset it to run locally"
        return Check("Ray", "problem", f"RAY_ADDRESS={address}: {error}", remedy)


def _dali() -> Check:
    names = [f"nvidia-dali-cuda{major}0" for major in sorted(DRIVERS, reverse=True)]
    found = next((f"{name} {version}" for name in names if (version := _version(name))), None)
    if found is None:
        remedy = "images are decoded on the CPU; for GPU decoding pip install 'ifsq-train[dali]'"
        return Check("DALI", "warning", "not installed", remedy)
    return Check("DALI", "ok", found)


def _compiler() -> Check:
    found = next((name for name in ("g++", "c++", "clang++") if shutil.which(name)), None)
    if found is not None:
        return Check("C++ compiler", "ok", found)
    remedy = "strategy.compile and compiled sampling need one: install g++ and the Python headers"
    return Check("C++ compiler", "warning", "none", remedy)


def _object_storage() -> Check:
    version = _version("obstore")
    if version is None:
        remedy = "for s3:// places: pip install 'ifsq-train[s3]'"
        return Check("object storage", "warning", "obstore is not installed", remedy)
    return Check("object storage", "ok", f"obstore {version}")
