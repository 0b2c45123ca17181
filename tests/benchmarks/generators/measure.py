"""Taking times of several ways to do the same thing, side by side in one run."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch


def measure(
    runs: dict[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, float]:
    """Median processor seconds (all threads) of each, taken in turns, after one warm-up each."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(0 if warm_up else 1, rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            run()
            if turn:
                taken[name].append(time.process_time() - began)
    return {name: median(times) for name, times in taken.items()}


def show(what: str, taken: dict[str, float]) -> None:
    """One line: both medians and their ratio."""
    slow, fast = taken["released"], taken["ours"]
    print(f"{what:44} released {slow:9.4f} s   ours {fast:9.4f} s   {slow / fast:5.2f} x")


def head() -> None:
    """What the numbers were taken on."""
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads, processor seconds")
