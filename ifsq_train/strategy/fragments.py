"""Flat fragments of parameters, as ZeRO partitions and checkpoints store them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ifsq_train.checkpoint.format import FIRST_MOMENT, MASTER, SECOND_MOMENT


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
