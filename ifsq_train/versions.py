"""Versions and the machine that numbers depend on, kept in every result and checkpoint."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

_PACKAGES = (
    "ifsq-train",
    "torch",
    "deepspeed",
    "ray",
    "webdataset",
    "pyarrow",
    "numpy",
    "nvidia-dali-cuda130",
    "simplejpeg",
    "pillow",
    "safetensors",
    "scikit-learn",
)


@cache
def _versions() -> tuple[tuple[str, str], ...]:
    found = [("python", platform.python_version())]
    for package in _PACKAGES:
        try:
            found.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return tuple(found)


def library_versions() -> dict[str, str]:
    """Version by package, of those installed, and of Python."""
    return dict(_versions())


def run_environment() -> dict[str, str | int]:
    """Where and when this process runs: hardware, source revision and date (UTC).

    Names no user, host or path, so that results can be passed on.
    """
    import torch

    found: dict[str, str | int] = {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "commit": source_revision() or "not a checkout",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        found["gpus"] = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return found


@cache
def source_revision() -> str | None:
    """Git commit of the checkout this runs from, ``-dirty`` where tracked files differ; None for
    an installed package."""
    folder = Path(__file__).parents[1]
    if not (folder / ".git").exists():
        return None
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
