"""One switch that turns every optimised path off, to find out whether one of them is at fault.

With ``IFSQ_PLAIN=1`` in the environment the losses hold whole logits, decoding re-reads its whole
cache and nothing is compiled or fused by hand. Results agree up to rounding; only speed and memory
differ.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

VARIABLE = "IFSQ_PLAIN"


def plain_paths() -> bool:
    """Whether the optimised paths are off."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")


_as_on_a_gpu = False
"""A plain global, since torch.compile cannot trace context variables."""


@contextmanager
def as_on_a_gpu() -> Iterator[None]:
    """Inside, tensors of the CPU take the formulas a GPU would: to see what it would hold.

    For a process that does nothing else meanwhile, as `ifsq plan` does.
    """
    global _as_on_a_gpu
    before, _as_on_a_gpu = _as_on_a_gpu, True
    try:
        yield
    finally:
        _as_on_a_gpu = before


def cpu_formulas(device: torch.device) -> bool:
    """Whether what was written for CPUs is to be used on a device."""
    return device.type == "cpu" and not (plain_paths() or _as_on_a_gpu)
