"""Decisions that all ranks must take alike."""

from __future__ import annotations

import secrets

import torch
import torch.distributed as dist

from ifsq_train.distributed.collectives import broadcast, several_ranks
from ifsq_train.distributed.context import RunContext
from ifsq_train.distributed.interruption import Interruption


def shared_attempt_id() -> str:
    """A fresh random name for this start of the run, equal on all ranks (collective)."""
    attempt = broadcast(torch.tensor(secrets.randbits(62), dtype=torch.int64))
    return f"{int(attempt):016x}"


class InterruptionVote:
    """The highest interruption any rank knew of one step ago, equal on all ranks.

    Every step each rank hands in a number; the vote runs in the background on the CPU and is
    read one step later, so nobody waits for it.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._group = dist.new_group(backend="gloo") if several_ranks() else None
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None

    def exchange(self) -> Interruption:
        """Read the last vote, start the next; once per step on every rank."""
        result = self._finish()
        vote = torch.tensor(int(self._context.interruption()))
        work = None
        if self._group is not None:
            work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, vote)
        return result

    def _finish(self) -> Interruption:
        if self._pending is None:
            return Interruption.NONE
        work, vote = self._pending
        if work is not None:
            work.wait()
        return Interruption(int(vote))
