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


RANKS_PER_VOTE = 128
"""Up to so many ranks vote at every step, twice as many at every second one, and so on: a vote of
a thousand ranks over TCP takes about as long as a step."""


class InterruptionVote:
    """The highest interruption any rank knew of at the last vote, equal on all ranks.

    At a vote each rank hands in a number; it runs in the background on the CPU and is read one
    step later, so nobody waits for it.
    """

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._group = dist.new_group(backend="gloo") if several_ranks() else None
        self._pending: tuple[dist.Work | None, torch.Tensor] | None = None
        self._every, self._steps = max(1, context.world_size // RANKS_PER_VOTE), 0

    def exchange(self) -> Interruption:
        """Read the last vote, start the next if it is due; once per step on every rank."""
        result = self._finish()
        self._steps += 1
        if self._steps % self._every:
            return result
        vote = torch.tensor(int(self._context.interruption()))
        work = None
        if self._group is not None:
            work = dist.all_reduce(vote, dist.ReduceOp.MAX, group=self._group, async_op=True)
        self._pending = (work, vote)
        return result

    def _finish(self) -> Interruption:
        if self._pending is None:
            return Interruption.NONE
        (work, vote), self._pending = self._pending, None
        if work is not None:
            work.wait()
        return Interruption(int(vote))
