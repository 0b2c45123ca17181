"""Collective operations on small values over all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    pass


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place; the values themselves in a run of one worker."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank (collective, waits)."""
    if not several_ranks():
        return flag
    value = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return bool(value)


def several_ranks() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1
