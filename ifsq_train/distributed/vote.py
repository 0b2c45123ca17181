"""Decisions that all ranks must take alike."""

from __future__ import annotations

import torch
import torch.distributed as dist

from ifsq_train.distributed.collectives import several_ranks
from ifsq_train.distributed.context import RunContext
from ifsq_train.distributed.interruption import Interruption


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
