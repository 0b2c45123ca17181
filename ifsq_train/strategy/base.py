"""The seam between the loop and the engine that spreads a network over workers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from ifsq_train.config import OptimConfig
from ifsq_train.strategy.fragments import Fragment


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did.

    Attributes:
        grad_norm: global L2 norm before clipping; not finite where a gradient is not. A tensor
            where reading the number would make the host wait for the device.
        lr: learning rate used.
        applied: False: the engine left the update out because a gradient is not finite. An
            engine that gives `grad_norm` as a tensor has applied it whatever the norm is.
    """

    grad_norm: float | Tensor
    lr: float
    applied: bool = True


class Strategy(Protocol):
    """Owns the wrapped networks, their gradients and their optimizers."""

    def prepare(
        self, modules: Mapping[str, nn.Module], optim: Mapping[str, OptimConfig], total_steps: int
    ) -> None:
        """Wrap each network and give it its optimizer; called once."""
        ...

    def updating(
        self, name: str, *, last_micro_batch: bool
    ) -> AbstractContextManager[Mapping[str, nn.Module]]:
        """The networks for one micro-batch of an update of `name`.

        `name` is wrapped, the others are frozen and bare. Forward and backward both happen
        inside; the last micro-batch of an update reduces the gradients over ranks.
        """
        ...

    def autocast(self) -> AbstractContextManager[object]:
        """The precision of the run, for calls of bare networks and losses."""
        ...

    def backward(self, name: str, loss: Tensor) -> None:
        """Accumulate gradients of `loss` into network `name`."""
        ...

    def step(self, name: str) -> StepStats:
        """Clip, update the weights of `name`, clear its gradients."""
        ...

    def owned_fragments(self, name: str) -> list[Fragment]:
        """The pieces this rank writes: over all ranks each element exactly once."""
        ...

    def loadable_fragments(self, name: str) -> list[Fragment]:
        """The pieces this rank must fill when it resumes (may overlap between ranks)."""
        ...

    def optimizer_steps(self, name: str) -> int:
        """Updates of `name` done so far."""
        ...

    def finish_loading(self, name: str, optimizer_steps: int) -> None:
        """After the loadable fragments were filled: bring weights and counters in line."""
        ...

    def module(self, name: str) -> nn.Module:
        """The bare network."""
        ...

    def describe(self) -> dict[str, object]:
        """What runs, as the engine itself reports it: strategy, zero_stage, world_size."""
        ...


@contextmanager
def frozen(modules: list[nn.Module]) -> Iterator[None]:
    """Parameters ask for no gradient inside; afterwards as before.

    Without it an engine would see gradients of a network that is not being updated and
    either fail or add them twice, depending on the ZeRO stage.
    """
    held = [p for module in modules for p in module.parameters() if p.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)
