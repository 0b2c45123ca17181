"""Two ways of computing the same thing, timed in turns so that both see the same machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def compare(
    title: str, reference: Callable[[], object], ours: Callable[[], object], rounds: int
) -> float:
    """Print the medians and their ratio; returns how many times faster `ours` is.

    On a CPU times are processor seconds of this process, which others on the machine change less
    than the clock; quick calls are taken in groups of about five milliseconds.
    """
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    for _ in range(2):
        reference()
        ours()
    began = clock()
    reference()
    calls = max(1, int(5e-3 / max(clock() - began, 1e-5)))
    taken: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for run, times in zip((reference, ours), taken, strict=True):
            began = clock()
            for _ in range(calls):
                run()
            synchronize()
            times.append((clock() - began) * 1e3 / calls)
    slow, fast = median(taken[0]), median(taken[1])
    print(f"{title:44} {slow:10.3f} ms {fast:10.3f} ms  {slow / fast:6.2f} x", flush=True)
    return slow / fast


def synchronize() -> None:
    """Wait for the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
