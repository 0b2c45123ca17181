"""The seam between the loop and what is trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from ifsq_train.data.batch import Batch
from ifsq_train.randomness import BatchRandom


class Autocast(Protocol):
    """What a loss may ask of the engine."""

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the run, for calls of bare networks and losses."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What a task may know of the step it computes a loss for.

    Attributes:
        step: optimizer step, from 0.
        random: draws tied to the samples of this batch.
        share: weight of this micro-batch's mean such that the mean over ranks of the sum over
            micro-batches is the mean over the global batch; 1 where all parts are equal and
            there is one micro-batch.
        num_micro_batches: micro-batches this update is split into.
        strategy: for its autocast.
        logged: this step's metrics are looked at; in others a task may leave out dear ones.
    """

    step: int
    random: BatchRandom
    share: float
    num_micro_batches: int
    strategy: Autocast
    logged: bool = True


@dataclass(frozen=True)
class LossOutput:
    """Result of one forward pass.

    Attributes:
        loss: scalar whose gradient is wanted; its value need not be the loss.
        metrics: detached scalars, means over the micro-batch; has ``loss``.
    """

    loss: Tensor
    metrics: dict[str, Tensor]


class TrainTask(Protocol):
    """Which networks there are, which of them a step updates, and with what loss."""

    def modules(self) -> dict[str, nn.Module]:
        """Trainable networks by name."""
        ...

    def auxiliary(self) -> dict[str, nn.Module]:
        """Frozen networks a loss uses; moved to the device, never trained or saved."""
        ...

    def describe(self) -> dict[str, Any]:
        """JSON-able facts a checkpoint records, so that its networks can be built again."""
        ...

    def updates(self, step: int) -> tuple[str, ...]:
        """Networks to update in this step, in order."""
        ...

    def averaged(self) -> tuple[str, ...]:
        """Networks of which an exponential moving average is kept."""
        ...

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """Loss of one micro-batch for the update of network `update`."""
        ...


def with_draws(batch: Batch, task: TrainTask, random: BatchRandom) -> Batch:
    """The batch with the random numbers its task draws ahead; not every task does.

    They are functions of the samples' places, so the numbers are those a step would draw itself.
    """
    draw = getattr(task, "draw_ahead", None)
    return batch if draw is None else replace(batch, draws=draw(random))
