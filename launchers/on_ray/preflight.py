"""Checks on the driver before Ray workers start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ifsq_train.config import LaunchConfig, TrainConfig, to_dict

if TYPE_CHECKING:
    pass


def preflight(config: TrainConfig, launch: LaunchConfig) -> None:
    """Find the user's mistakes before a cluster is asked for anything.

    Raises:
        UserError: dataset missing or damaged, batch not divisible, foreign tokens, ...
    """
    import torch

    from ifsq_train.config.shares import check_even_split, check_shares
    from ifsq_train.data.open import extras_for, open_train_data
    from ifsq_train.training.saved_state import check_resumable

    folder = Path(config.output).absolute()
    check = check_shares if launch.elastic else check_even_split
    check(config, launch.num_workers)
    data = open_train_data(
        config.data,
        seed=config.seed,
        run_folder=folder,
        rank=0,
        device=torch.device("cpu"),
        extras=extras_for(config.task),
    )
    check_resumable(folder, data.plan.digest, config.steps)


def finished_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of this very recipe, if its run is complete; nothing needs to be started then."""
    from ifsq_train.checkpoint.reader import newest_checkpoint

    folder = Path(config.output).absolute()
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None or checkpoint.step != config.steps:
        return None
    if checkpoint.header["recipe"] != to_dict(config):
        return None
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return result if result.get("steps") == config.steps else None
