"""Two ways of computing the same thing, timed in turns so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def compare(
    title: str, reference: Callable[[], object], ours: Callable[[], object], rounds: int
) -> float:
    """Print the medians and their ratio; returns how many times faster `ours` is."""
    for _ in range(2):
        reference()
        ours()
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, times in zip((reference, ours), taken, strict=True):
            began = time.perf_counter()
            run()
            synchronize()
            times.append((time.perf_counter() - began) * 1e3)
    slow, fast = median(taken[0]), median(taken[1])
    print(f"{title:44} {slow:10.3f} ms {fast:10.3f} ms  {slow / fast:6.2f} x", flush=True)
    return slow / fast


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
