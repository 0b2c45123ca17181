"""The seam between the loop and the engine that spreads a network over workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ifsq_train.config import OptimConfig
from ifsq_train.strategy.muon import Muon, is_muon_parameter

# Names of the fp32 states of a parameter that a checkpoint keeps.
MASTER, FIRST_MOMENT, SECOND_MOMENT, AVERAGE = "master", "exp_avg", "exp_avg_sq", "ema"


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
    if optim.schedule == "wsd":
        length = max(1.0, optim.decay_ratio * total_updates)
        left = min(1.0, max(0.0, (total_updates - update) / length))
        return optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * left
    done = (update - optim.warmup_steps) / max(1, total_updates - optim.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * cosine


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (by the fused kernel, which CPUs have too) or Muon over all trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = _decay_groups(parameters, optim)
    if optim.kind == "muon":
        return Muon(groups, lr=optim.lr, momentum=optim.momentum, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _decay_groups(parameters: list[nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """One group, or two where vectors (biases, norms) do not decay."""
    if optim.decay == "all":
        return [{"params": parameters, "weight_decay": optim.weight_decay}]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_state(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
    """Give the moments before the first step, so that a checkpoint can be loaded into them."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for tensor in tensors:
        # The fused kernel keeps its counter on the device.
        device = tensor.device if fused else torch.device("cpu")
        state = {
            "step": torch.zeros((), dtype=torch.float32, device=device),
            "exp_avg": torch.zeros_like(tensor.detach()),
        }
        if not (isinstance(optimizer, Muon) and is_muon_parameter(tensor)):
            state["exp_avg_sq"] = torch.zeros_like(tensor.detach())
        optimizer.state[tensor] = state


def moments(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's moments of one tensor; Muon keeps no second one for matrices."""
    return {key: state[key] for key in (FIRST_MOMENT, SECOND_MOMENT) if key in state}


def whole_fragments(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Fragment]:
    """One fragment per parameter, where parameters and optimizer state are whole."""
    pieces = []
    for key, parameter in module.named_parameters():
        if not parameter.requires_grad and parameter not in optimizer.state:
            continue
        sources = {MASTER: parameter.detach(), **moments(optimizer.state[parameter])}
        states = {state: value.view(-1) for state, value in sources.items()}
        pieces.append(Fragment(key, tuple(parameter.shape), 0, states))
    return pieces


def split_fragments(whole: list[Fragment], rank: int, world_size: int) -> list[Fragment]:
    """The rank-th of world_size near-equal pieces of every parameter."""
    pieces = []
    for full in whole:
        first, last = (r * full.length // world_size for r in (rank, rank + 1))
        if last > first:
            states = {key: value[first:last] for key, value in full.states.items()}
            pieces.append(Fragment(full.name, full.shape, first, states))
    return pieces


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
