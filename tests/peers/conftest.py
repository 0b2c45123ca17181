"""Peers that need torchvision's Python code find it, whatever torch it was built for."""

from __future__ import annotations

import contextlib
import importlib.util

import torch


def pytest_configure() -> None:
    """Declare the two operators whose absence keeps torchvision from being imported.

    Its wheels for GPUs do not load their operators beside a torch for CPUs; nothing here calls any.
    """
    if importlib.util.find_spec("torchvision") is None:
        return
    with contextlib.suppress(RuntimeError):  # where it is there already
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[torch.library.Library] = []
