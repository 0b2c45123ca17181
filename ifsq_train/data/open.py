"""Opens the training data of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from ifsq_train.config import (
    DataConfig,
    GeneratorTaskConfig,
    ImageDataConfig,
    TaskConfig,
    TokenDataConfig,
    TrainConfig,
)
from ifsq_train.data.base import Extras, TrainData
from ifsq_train.data.images import image_budget, open_images
from ifsq_train.data.tokens import open_tokens

Serve = Callable[[TrainData, TrainConfig], TrainData]
"""Replaces training data by a source of the same batches."""


def without_helpers(data: TrainData, _config: TrainConfig) -> TrainData:
    """The data as it is."""
    return data


def open_train_data(
    config: DataConfig,
    *,
    seed: int,
    run_folder: Path,
    rank: int,
    device: torch.device,
    extras: Extras | None = None,
    decode_threads: int = 1,
) -> TrainData:
    """Open what a recipe names.

    Args:
        config: the data part of a recipe.
        seed: the run's.
        run_folder: where bad samples are recorded.
        rank: this worker's.
        device: where images are decoded to.
        extras: what batches of a token dataset shall have besides tokens and labels.
        decode_threads: images decoded at the same time.

    Raises:
        UserError: missing or damaged dataset, tokens of another tokenizer, too few samples, or a
            column the dataset has not.
    """
    if isinstance(config, TokenDataConfig):
        return open_tokens(config, seed, extras or Extras(), device)
    assert isinstance(config, ImageDataConfig)
    budget = image_budget(config, run_folder, rank)
    return open_images(config, seed=seed, budget=budget, device=device, threads=decode_threads)


def extras_for(task: TaskConfig) -> Extras:
    """What a task reads besides tokens and labels."""
    if not isinstance(task, GeneratorTaskConfig):
        return Extras()
    latents = task.speaks == "latents"
    if task.repa is None:
        return Extras(latents=latents)
    stored = task.repa.teacher is None
    return Extras(features=stored, pixels=not stored, latents=latents)
