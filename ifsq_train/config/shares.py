"""How a global batch is shared out: over workers, and on each over micro-batches.

Shares differ by at most one sample, and losses are weighted by true counts, so every sample weighs
the same whatever the number of workers.
"""

from __future__ import annotations

import math

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig


def check_shares(config: TrainConfig, world_size: int) -> None:
    """Every worker must get at least one sample of each batch.

    Raises:
        UserError: some would get none.
    """
    batch = config.data.global_batch_size
    if batch < world_size:
        raise UserError(
            f"data.global_batch_size={batch} is less than the {world_size} workers;"
            f" use at most {batch} workers"
        )


def check_even_split(config: TrainConfig, world_size: int) -> None:
    """A run that is not elastic keeps its number of workers; unequal shares are then a mistake.

    Raises:
        UserError: with the nearest batch sizes that split evenly.
    """
    check_shares(config, world_size)
    batch = config.data.global_batch_size
    if batch % world_size:
        below, above = batch // world_size * world_size, -(-batch // world_size) * world_size
        raise UserError(
            f"data.global_batch_size={batch} is not divisible by the {world_size} workers;"
            f" use {below} or {above}; only `ifsq train --min-workers` allows unequal shares"
        )


def num_micro_batches(config: TrainConfig, world_size: int) -> int:
    """Micro-batches per update, equal on all ranks."""
    share = math.ceil(config.data.global_batch_size / world_size)
    return math.ceil(share / (config.strategy.micro_batch_size or share))
