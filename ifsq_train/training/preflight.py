"""Checks before a run starts, on the machine that starts it; nothing is asked for before."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from data_pipelines.documents import as_object, parse_json, read_object
from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.artifacts.recipe_faults import recipe_faults
from ifsq_train.checkpoint.reader import newest_checkpoint
from ifsq_train.config import LaunchConfig, TokenizerTaskConfig, TrainConfig, to_dict
from ifsq_train.config.shares import check_even_split, check_shares
from ifsq_train.data.base import TrainData
from ifsq_train.data.classes import classes_of
from ifsq_train.data.open import extras_for, open_train_data
from ifsq_train.plugins.files import loaded_files
from ifsq_train.training.saved_state import check_resumable

logger = logging.getLogger(__name__)

_STEP = "checkpoints/step-*/"
RUN_FILES = (
    f"{_STEP}rank-*.safetensors",
    f"{_STEP}rank-*.json",
    f"{_STEP}shared.safetensors",
    f"{_STEP}index.json",
    f"{_STEP}checkpoint.json",
    "checkpoints/attempt.json",
    "checkpoints/scores.json",
    "metrics.jsonl",
    "starts.jsonl",
    "metrics_endpoint*.json",
    "result.json",
    "latents.json",
    "quarantine-rank*.jsonl",
    "logs/rank-*.log*",
    "failures/*.json",
    "hangs/*.json",
    "profile/*.json.gz",
    "plugins/*.py",
    "tracker-*.json",
    "tensorboard/*",
    "wandb/*",
    "mlruns/*",
    "aim/*",
    "ray/*",
    ".ray-requester",
)


def _holds_run(storage: Storage) -> bool:
    """Whether a folder without a marker is the run of an earlier release."""
    names = [name for name in storage.list() if not name.startswith(".")]
    begun = ("checkpoints/attempt.json", "checkpoints/step-", "failures/", "logs/rank-", "ray/")
    return any(name.startswith(begun) for name in names) or _has_result(storage)


def _has_result(storage: Storage) -> bool:
    if not storage.exists("result.json"):
        return False
    try:
        return "samples_seen" in as_object(parse_json(storage.read("result.json"), "it"), "it")
    except UserError:
        return False


TRAINER = Writer("ifsq train", RUN_FILES, _holds_run, result="run")


def preflight(
    config: TrainConfig,
    launch: LaunchConfig,
    *,
    overwrite: bool = False,
) -> dict[str, Any] | None:
    """Find the user's mistakes and make the run folder the run's own.

    Args:
        config: the recipe, with absolute paths.
        launch: shape of the worker group.
        overwrite: remove the run that is in the folder.

    Returns:
        The result of the run if it is finished already: nothing needs to be started then.

    Raises:
        UserError: dataset missing or damaged, batch not divisible, foreign tokens, a folder that
            holds something else, a run with other settings.
    """
    refuse_faults(recipe_faults(to_dict(config)))
    check = check_shares if launch.elastic else check_even_split
    check(config, launch.num_workers)
    folder = Path(config.output)
    data = open_train_data(
        config.data,
        seed=config.seed,
        run_folder=folder,
        rank=0,
        device=torch.device("cpu"),
        extras=extras_for(config.task),
    )
    refuse_faults(label_faults(config, data))
    job = {"name": config.name, "task": config.task.kind}
    claim(open_storage(folder), TRAINER, job, overwrite=overwrite)
    keep_plugins(folder)
    check_resumable(config, data, launch.allow_changes)
    return finished_result(config)


def keep_plugins(folder: Path) -> None:
    """Write the text of the plug-in files of this start to ``plugins/`` of the run folder."""
    for file in loaded_files():
        place = folder / "plugins" / file.name
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, file.text.encode())


def refuse_faults(faults: Sequence[str]) -> None:
    """Raise UserError with a line for each fault, if there are any."""
    if faults:
        raise UserError(*faults)


def label_faults(config: TrainConfig, data: TrainData) -> list[str]:
    """What is wrong with the labels of a class-conditional generator's data.

    Fewer classes in the data than in the recipe are only warned of.
    """
    seen = classes_of(data)
    if isinstance(config.task, TokenizerTaskConfig) or seen is None:
        return []
    wanted, known = config.task.model.num_classes, seen.known
    faults = []
    if -1 in seen.labels:
        faults.append(
            "data: there are samples without a label (-1), and the generator is class-conditional;"
            " pack images in class folders, or datasets with the same classes"
        )
    if known and max(known) >= wanted:
        faults.append(
            f"task.model.num_classes: found {wanted}, but the data has labels up to {max(known)};"
            f" use {max(known) + 1}"
        )
    elif known and seen.complete and len(known) < wanted:
        logger.warning(
            "task.model.num_classes=%d, but the data has only %d classes; the others are not"
            " trained, and sampling leaves them out",
            wanted,
            len(known),
        )
    return faults


def finished_result(config: TrainConfig) -> dict[str, Any] | None:
    """The result of a run whose newest checkpoint is of the recipe's last step, if it has one."""
    folder = Path(config.output).absolute()
    checkpoint = newest_checkpoint(folder / "checkpoints", verify=False)
    if checkpoint is None or checkpoint.step != config.steps:
        return None
    # Only now every byte is read: a run that goes on has its workers do that, once.
    checkpoint = newest_checkpoint(folder / "checkpoints")
    if checkpoint is None or checkpoint.step != config.steps:
        return None
    try:
        result = read_object(folder / "result.json", allow_nan=True)
    except UserError:
        return None
    numbers = [result.get(key) for key in ("final_loss", "seconds", "samples_seen")]
    whole = all(isinstance(number, int | float) for number in numbers)
    return result if whole and result.get("steps") == config.steps else None
