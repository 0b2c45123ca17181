"""How a batch splits over workers and micro-batches, at the limits."""

from __future__ import annotations

import pytest

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.config.shares import check_even_split, check_shares, num_micro_batches


def recipe(batch: int, micro: int | None = None) -> TrainConfig:
    changes = [f"data.global_batch_size={batch}"]
    changes += [] if micro is None else [f"strategy.micro_batch_size={micro}"]
    found = load_recipe("demo/tokenizer", changes)
    assert isinstance(found, TrainConfig)
    return found


def test_a_worker_for_every_sample_is_the_most() -> None:
    check_shares(recipe(4), 4)
    check_even_split(recipe(4), 4)
    check_shares(recipe(5), 4)
    with pytest.raises(UserError, match="use at most 4 workers"):
        check_shares(recipe(4), 5)


@pytest.mark.parametrize(("batch", "below", "above"), [(10, 9, 12), (13, 12, 15), (5, 3, 6)])
def test_the_nearest_even_batches_are_named(batch: int, below: int, above: int) -> None:
    with pytest.raises(UserError, match=f"use {below} or {above}; only `ifsq train --min-workers`"):
        check_even_split(recipe(batch), 3)


@pytest.mark.parametrize(
    ("batch", "workers", "micro", "count"),
    [(8, 2, None, 1), (8, 2, 4, 1), (8, 2, 3, 2), (9, 2, 4, 2), (9, 2, 5, 1), (8, 1, 1, 8)],
)
def test_micro_batches_hold_the_largest_share(
    batch: int, workers: int, micro: int | None, count: int
) -> None:
    assert num_micro_batches(recipe(batch, micro), workers) == count
