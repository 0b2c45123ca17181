"""How often workers vote on an interruption, and how soon they act on one."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from ifsq_train.distributed.interruption import Interruption
from ifsq_train.distributed.vote import InterruptionVote


class Worker:
    """One of many; is told to stop at a step, and counts how often it is asked."""

    rank, local_rank, device, launch_id = 0, 0, torch.device("cpu"), "test"

    def __init__(self, world_size: int, stops_at: int) -> None:
        self.world_size, self._stops_at = world_size, stops_at
        self.step = self.asked = 0

    def interruption(self) -> Interruption:
        self.asked += 1
        return Interruption.STOP if self.step >= self._stops_at else Interruption.NONE

    def report(self, metrics: Mapping[str, float]) -> None:
        """Nobody listens."""


@pytest.mark.parametrize(
    ("world_size", "every"), [(1, 1), (128, 1), (255, 1), (256, 2), (1024, 8), (4096, 32)]
)
def test_a_vote_every_few_steps_and_an_answer_one_step_later(world_size: int, every: int) -> None:
    steps = 5 * every
    worker = Worker(world_size, stops_at=steps)
    vote = InterruptionVote(worker)
    answers = []
    for worker.step in range(1, steps + 2):
        answers.append(vote.exchange())
    assert answers == [Interruption.NONE] * steps + [Interruption.STOP]
    assert worker.asked == steps // every + (every == 1)
