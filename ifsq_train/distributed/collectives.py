"""Collective operations over all ranks, and the one place that knows where their tensors lie."""

from __future__ import annotations

import torch
import torch.distributed as dist

COLLECTIVE_SECONDS = 1800
"""A collective that takes longer ends its process. Longer than the watchdog's default: it speaks
first and names the rank that hangs, where NCCL would only say that somebody did."""


def several_ranks() -> bool:
    """Whether there is anybody to talk to."""
    return dist.is_initialized() and dist.get_world_size() > 1


def collective_device() -> torch.device:
    """Where tensors of collectives must lie: NCCL takes those on this rank's GPU only."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")


def backend_of(device: torch.device) -> str:
    """The library whose collectives work on a device: nccl or gloo."""
    return "nccl" if device.type == "cuda" else "gloo"


def broadcast(values: torch.Tensor) -> torch.Tensor:
    """Rank 0's values on every rank (collective); the values themselves in a run of one worker.

    Args:
        values: of one shape and dtype on all ranks, on the CPU or on the rank's device.
    """
    if several_ranks():
        values = values.to(collective_device())
        dist.broadcast(values, src=0)
    return values


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place (collective); the values themselves in a run of one worker."""
    if several_ranks():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank (collective, waits)."""
    if not several_ranks():
        return flag
    value = torch.tensor(int(flag), device=collective_device())
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)
