"""The seam between the loop and the engine that spreads a network over workers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from ifsq_train.config import OptimConfig

# Names of the fp32 states of a parameter that a checkpoint keeps.
MASTER, FIRST_MOMENT, SECOND_MOMENT, AVERAGE = "master", "exp_avg", "exp_avg_sq", "ema"


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step did.

    Attributes:
        grad_norm: global L2 norm before clipping; NaN where the engine does not tell.
        lr: learning rate used.
    """

    grad_norm: float
    lr: float


@dataclass(frozen=True)
class Fragment:
    """A contiguous piece of one parameter that this rank holds, with its optimizer state.

    Attributes:
        name: parameter name in the un-wrapped module.
        shape: full shape of the parameter.
        start: first element, in the flattened parameter.
        states: 1-D fp32 tensors of equal length, live views: writing to them changes the
            engine's own state.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    states: dict[str, Tensor]

    @property
    def length(self) -> int:
        """Elements in this piece."""
        return self.states[MASTER].numel()


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


def lr_factor(optim: OptimConfig, update: int, total_updates: int) -> float:
    """Learning rate of update number `update` (from 0) over `optim.lr`, in [0, 1]."""
    if update < optim.warmup_steps:
        return (update + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    done = (update - optim.warmup_steps) / max(1, total_updates - optim.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * cosine


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, by the fused kernel, which CPUs have too."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        parameters,
        lr=optim.lr,
        betas=optim.betas,
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        fused=True,
    )


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
