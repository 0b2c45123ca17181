"""Taking times, memory and operations of one call on the device; one JSON line each."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode


@dataclass
class Bench:
    """Device, sizes and how often to repeat.

    Attributes:
        tiny: shrink every size, to see on a CPU that it runs.
        peak: TFLOP/s of the device in bf16.
        failures: names of the checks that did not hold.
        images: folder of JPEGs for the decoders; None makes some.
    """

    device: torch.device
    tiny: bool
    peak: float
    rounds: int
    failures: list[str]
    images: Path | None = None

    def size(self, paper: int, tiny: int) -> int:
        """The paper's size, or a small one."""
        return tiny if self.tiny else paper

    def autocast(self) -> torch.autocast:
        """bf16, as all recipes of the paper train."""
        return torch.autocast(self.device.type, torch.bfloat16)

    def emit(self, what: str, **facts: Any) -> None:
        """Print a line."""
        print(json.dumps({"what": what, **facts}), flush=True)

    def check(self, what: str, holds: bool, **facts: Any) -> None:
        """Print whether something holds, and remember if it does not."""
        self.emit(what, holds=bool(holds), **facts)
        if not holds:
            self.failures.append(what)

    def wait(self) -> None:
        """Until the device has done everything."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], object]) -> float:
        """Median over rounds, after three calls to warm up."""
        for _ in range(1 if self.tiny else 3):
            run()
        times = []
        for _ in range(self.rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(time.perf_counter() - began)
        return sorted(times)[len(times) // 2]

    def report(self, name: str, images: int, run: Callable[[], object], flops: float = 0.0) -> None:
        """Images per second, MFU and peak memory; `flops` where the counter cannot see them."""
        if not flops:
            flops = count_flops(run)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = self.seconds(run)
        peak = torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else 0.0
        self.emit(
            name,
            images_per_s=round(images / seconds, 2),
            ms=round(seconds * 1e3, 2),
            tflop=round(flops / 1e12, 4),
            mfu=round(flops / seconds / (self.peak * 1e12), 4),
            peak_gib=round(peak, 2),
        )

    def largest(self, name: str, sizes: list[int], attempt: Callable[[int], None]) -> None:
        """`attempt` with the first size that fits into memory."""
        for size in sizes:
            try:
                return attempt(size)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                self.emit(name, batch=size, fits=False)
        return None


def count_flops(run: Callable[[], object]) -> float:
    """Operations of one call, by PyTorch's counter: products, attention, convolutions."""
    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())
