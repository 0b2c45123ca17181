"""Versions of what the numbers depend on, kept in every result and checkpoint."""

from __future__ import annotations

import platform
from functools import cache
from importlib import metadata

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
