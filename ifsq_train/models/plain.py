"""One switch that turns every optimised path off, to find out whether one of them is at fault.

With ``IFSQ_PLAIN=1`` in the environment the losses hold whole logits, decoding re-reads its whole
cache and nothing is compiled or fused by hand. Results agree up to rounding; only speed and memory
differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

VARIABLE = "IFSQ_PLAIN"


def plain_paths() -> bool:
    """Whether the optimised paths are off."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


_AS_ON_A_GPU: ContextVar[bool] = ContextVar("as_on_a_gpu", default=False)


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, tensors of the CPU take the formulas a GPU would: to see what it would hold."""
    token = _AS_ON_A_GPU.set(True)
    try:
        yield
    finally:
        _AS_ON_A_GPU.reset(token)


def cpu_formulas(device: torch.device) -> bool:
    """Whether what was written for CPUs is to be used on a device."""
    return device.type == "cpu" and not (plain_paths() or _AS_ON_A_GPU.get())
