"""Where the time of a step goes, and what the machine reaches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

# Dense bf16 peak in FLOP/s, from the vendors' data sheets, by a part of the device name.
_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "H20": 148e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak of one device in bf16, FLOP/s; None where it is not known (and on the CPU)."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # Longer names first: an L40S is not an L4, an H200 not an H20.
    known = sorted(_PEAKS, key=len, reverse=True)
    return next((_PEAKS[part] for part in known if part in name), None)


class StepMeter:
    """Seconds by phase and work done since the last `take`.

    On a GPU a phase is the time the host spends in it: kernels run behind. Their sum over a
    logged interval is right all the same, since logging waits for the device.

    Args:
        device: for its peak speed and its memory.
        world_size: workers that share the work.
        flops: forward and backward of one sample, by network; empty where not counted.
    """

    def __init__(self, device: torch.device, world_size: int, flops: Mapping[str, float]) -> None:
        self._device, self._world_size, self._flops = device, world_size, flops
        self._peak = peak_flops(device)
        self._seconds: dict[str, float] = {}
        self._passes: dict[str, float] = {}
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._done = 0.0
        self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's wall time to a phase."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    @contextmanager
    def device_pass(self, name: str) -> Iterator[None]:
        """Add the time the device spends in a block to a pass; nothing waits for the device."""
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            self._passes[name] = self._passes.get(name, 0.0) + time.perf_counter() - began
            return
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        yield
        end.record()
        self._events.append((name, begin, end))

    def take_passes(self) -> dict[str, float]:
        """Seconds of the device by pass since the last call; to be called when it has caught up."""
        for name, begin, end in self._events:
            end.synchronize()
            seconds = begin.elapsed_time(end) / 1000
            self._passes[name] = self._passes.get(name, 0.0) + seconds
        self._events.clear()
        taken, self._passes = self._passes, {}
        return taken

    def worked(self, network: str, samples: int) -> None:
        """Count an update of a network on so many samples (of all workers)."""
        self._done += self._flops.get(network, 0.0) * samples

    def take(self) -> dict[str, float]:
        """What was measured, and start again from zero.

        Returns:
            ``seconds/PHASE`` of this worker; and where FLOPs were counted ``flops_per_second`` of
            all workers and, on a known GPU, ``mfu`` in [0, 1]; on a GPU ``peak_memory_bytes``.
        """
        elapsed = time.perf_counter() - self._since
        result = {f"seconds/{name}": seconds for name, seconds in self._seconds.items()}
        if self._done:
            result["flops_per_second"] = self._done / elapsed
            if self._peak is not None:
                result["mfu"] = self._done / elapsed / (self._peak * self._world_size)
        if self._device.type == "cuda":
            result["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self._device))
        self._seconds, self._done, self._since = {}, 0.0, time.perf_counter()
        return result
