"""Between the live state of a run and a checkpoint: what is saved, and how it is taken over."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.checkpoint.format import AVERAGE, CheckpointError, Piece, step_folder
from ifsq_train.checkpoint.reader import Checkpoint, newest_checkpoint
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.config import TrainConfig
from ifsq_train.data.base import TrainData
from ifsq_train.distributed.collectives import any_rank, broadcast
from ifsq_train.distributed.context import RunContext
from ifsq_train.strategy.base import Strategy
from ifsq_train.training.ema import WeightAverage
from ifsq_train.training.experiment import (
    ORDER_KEYS,
    Changes,
    changes_to_record,
    covers,
    order_changes,
    recipe_changes,
    refuse_changes,
)

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
    start: Start,
) -> tuple[int | None, list[dict[str, Any]]]:
    """Load the newest intact checkpoint (collective).

    Returns:
        The step resumed from, or None where there is no checkpoint; and all changes of settings
        in the run so far, see `changes_to_record`.

    Raises:
        UserError: the checkpoint belongs to another experiment, data order or model.
    """
    checkpoint = _agreed_checkpoint(folder / "checkpoints", context)
    if checkpoint is None:
        return None, []
    take_over_progress(checkpoint, state, start)
    changes = changes_to_record(checkpoint.header, start.changes(checkpoint.header))
    _load(checkpoint, strategy, averages)
    if context.rank == 0:
        logger.info("resumed from %s at step %d", checkpoint.folder.name, state.step)
    return state.step, changes


@dataclass(frozen=True)
class Start:
    """What a start of a run is compared with its checkpoint by.

    Attributes:
        config: the recipe.
        data: what was opened, see `TrainData.describe`.
        allowed: keys in which the recipe may differ from the checkpoint's.
    """

    config: TrainConfig
    data: Mapping[str, Any]
    allowed: Sequence[str] = ()

    def changes(self, header: Mapping[str, Any]) -> Changes:
        """Keys of the recipe whose values differ from the checkpoint's."""
        saved = header.get("recipe")
        return recipe_changes(saved, self.config) if saved else {}


def take_over_progress(checkpoint: Checkpoint, state: TrainState, start: Start) -> None:
    """Fill in the state, if this start is the same experiment.

    Raises:
        UserError: it is not; lists every change.
    """
    header, changes = checkpoint.header, start.changes(checkpoint.header)
    where = str(checkpoint.folder.parent.parent)
    refuse_changes(where, checkpoint.step, changes, start.allowed)
    allowed = any(covers(start.allowed, key) for key in ORDER_KEYS)
    state.restore(
        header["train_state"], order_changes(header, changes, start.data), other_order=allowed
    )


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
    """Rank 0 chooses, the others follow: they must never resume from different steps.

    Every rank reads its share of the files against their checksums, so that together they read
    the checkpoint once; where one finds damage, all go on to the one before.
    """
    damaged: set[int] = set()
    while True:
        found = None
        if context.rank == 0:
            found = newest_checkpoint(folder, verify=False, without=damaged)
        step = int(broadcast(torch.tensor(-1 if found is None else found.step)))
        if step < 0:
            return None
        intact = True
        try:
            found = found or Checkpoint(step_folder(folder, step), verify=False)
            found.verify(context.rank, context.world_size)
        except CheckpointError as error:
            logger.warning("skipping damaged checkpoint: %s", error)
            intact = False
        if not any_rank(not intact):
            return found
        damaged.add(step)


def check_resumable(config: TrainConfig, data: TrainData, allowed: Sequence[str] = ()) -> None:
    """Before anything is started: would the run folder's checkpoint be taken?

    Args:
        config: the recipe.
        data: opened.
        allowed: keys in which the recipe may differ from the checkpoint's.

    Raises:
        UserError: it was made with other settings or another data order, or is already past the
            recipe's last step.
    """
    folder = Path(config.output).absolute()
    # Marker and index are enough here; the workers read the rest, once.
    checkpoint = newest_checkpoint(folder / "checkpoints", verify=False)
    if checkpoint is None:
        return
    state = TrainState(data.plan.digest)
    take_over_progress(checkpoint, state, Start(config, data.describe(), allowed))
    if state.step > config.steps:
        raise UserError(
            f"{folder}: already trained for {state.step} steps, the recipe asks for"
            f" {config.steps}; raise steps or use another output folder"
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
            checkpoint.read_into(values, name, piece.name, state, piece.start)
    buffers = dict(strategy.module(name).named_buffers())
    for key, saved in checkpoint.buffers(f"live/{name}").items():
        buffers[key].copy_(saved)
    strategy.finish_loading(name, steps)
