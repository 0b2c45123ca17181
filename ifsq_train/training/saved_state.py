"""Between the live state of a run and a checkpoint: what is saved, and how it is taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.checkpoint.format import AVERAGE, Piece, step_folder
from ifsq_train.checkpoint.reader import Checkpoint, newest_checkpoint
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.distributed.collectives import broadcast
from ifsq_train.distributed.context import RunContext
from ifsq_train.strategy.base import Strategy
from ifsq_train.training.ema import WeightAverage

logger = logging.getLogger(__name__)


def collect_state(
    strategy: Strategy, networks: list[str], averages: Mapping[str, WeightAverage]
) -> tuple[list[Piece], dict[str, Tensor]]:
    """The pieces this rank writes, and the buffers rank 0 writes."""
    pieces: list[Piece] = []
    buffers: dict[str, Tensor] = {}
    for name in networks:
        for piece in strategy.owned_fragments(name):
            for state, values in piece.states.items():
                pieces.append(Piece(name, piece.name, state, piece.shape, piece.start, values))
        buffers.update(live_buffers(strategy, name))
    for name, average in averages.items():
        for piece, values in average.pieces():
            pieces.append(Piece(name, piece.name, AVERAGE, piece.shape, piece.start, values))
        buffers.update({f"ema/{name}/{key}": value for key, value in average.buffers().items()})
    return pieces, buffers


def live_buffers(strategy: Strategy, name: str) -> dict[str, Tensor]:
    """Persistent buffers of a network, under the names a checkpoint gives them."""
    module = strategy.module(name)
    parameters = {key for key, _ in module.named_parameters()}
    persistent = module.state_dict(keep_vars=True)
    return {f"live/{name}/{k}": v for k, v in persistent.items() if k not in parameters}


def restore(
    folder: Path,
    context: RunContext,
    strategy: Strategy,
    averages: Mapping[str, WeightAverage],
    state: TrainState,
) -> int | None:
    """Load the launcher's choice or the newest intact checkpoint (collective).

    Returns:
        The step resumed from, or None where there is no checkpoint.

    Raises:
        UserError: the checkpoint belongs to another data order or another model.
    """
    checkpoint = _agreed_checkpoint(folder / "checkpoints", context)
    if checkpoint is None:
        return None
    state.restore(checkpoint.header["train_state"])
    _load(checkpoint, strategy, averages)
    if context.rank == 0:
        logger.info("resumed from %s at step %d", checkpoint.folder.name, state.step)
    return state.step


def roll_back(
    folder: Path, context: RunContext, strategy: Strategy, averages: Mapping[str, WeightAverage]
) -> None:
    """Weights, moments and averages of the newest intact checkpoint; progress stays (collective).

    Raises:
        UserError: there is none yet.
    """
    checkpoint = _agreed_checkpoint(folder / "checkpoints", context)
    if checkpoint is None:
        raise UserError(
            "on_nonfinite: rollback: there is no checkpoint to roll back to yet; lower"
            " checkpoint.every_steps or the learning rate"
        )
    _load(checkpoint, strategy, averages)
    if context.rank == 0:
        logger.warning("rolled back to the weights of %s", checkpoint.folder.name)


def _load(
    checkpoint: Checkpoint, strategy: Strategy, averages: Mapping[str, WeightAverage]
) -> None:
    for name, steps in checkpoint.header["optimizer_steps"].items():
        load_network(checkpoint, strategy, name, steps)
    for average in averages.values():
        average.load(checkpoint)


def _agreed_checkpoint(folder: Path, context: RunContext) -> Checkpoint | None:
    """Rank 0 chooses, the others follow: they must never resume from different steps."""
    found = newest_checkpoint(folder) if context.rank == 0 else None
    step = broadcast(torch.tensor(-1 if found is None else found.step))
    if int(step) < 0:
        return None
    if context.rank == 0:
        return found
    return Checkpoint(step_folder(folder, int(step)), verify=False)


def check_resumable(folder: Path, plan_digest: str, steps: int) -> None:
    """Before anything is started: would the run folder's checkpoint be taken?

    Raises:
        UserError: it was made with another data order, or is already past `steps`.
    """
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None:
        return
    state = TrainState(plan_digest)
    state.restore(checkpoint.header["train_state"])
    if state.step > steps:
        raise UserError(
            f"{folder}: already trained for {state.step} steps, the recipe asks for"
            f" {steps}; raise steps or use another output folder"
        )


@torch.no_grad()
def load_network(checkpoint: Checkpoint, strategy: Strategy, name: str, steps: int) -> None:
    """Fill one network's pieces, whatever pieces the checkpoint was written in."""
    for piece in strategy.loadable_fragments(name):
        for state, values in piece.states.items():
            shape = checkpoint.shape(name, piece.name)
            if shape != piece.shape:
                raise UserError(
                    f"{checkpoint.folder}: {name}.{piece.name} has shape {shape}, the recipe's"
                    f" model has {piece.shape}; use the recipe it was made with or another output"
                )
            saved = checkpoint.read(name, piece.name, state, piece.start, piece.length)
            values.copy_(saved)
    buffers = dict(strategy.module(name).named_buffers())
    for key, saved in checkpoint.buffers(f"live/{name}").items():
        buffers[key].copy_(saved)
    strategy.finish_loading(name, steps)
