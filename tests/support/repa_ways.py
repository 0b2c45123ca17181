"""One REPA run in three ways: stored features, a teacher on the pixels, all from pixels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ifsq_train.train
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.config import TokenDataConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.data.base import DataFacts, Extras, TrainData
from ifsq_train.data.batch import Batch
from ifsq_train.data.open import open_train_data
from ifsq_train.data.tokens import TokenTrainData
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.metrics.jsonl import read_jsonl

WAYS = ("stored", "on the fly", "pixels")


class PixelsOfTokens:
    """The images behind a token dataset as a dataset of images, in the same order and views."""

    def __init__(self, tokens: TokenTrainData) -> None:
        self._tokens, self.plan = tokens, tokens.plan

    @property
    def facts(self) -> DataFacts:
        return replace(self._tokens.facts, tokens=None)

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        batch = self._tokens.load(step, rank, world_size)
        assert batch.images is not None
        return Batch(batch.images, batch.labels, batch.positions)

    def describe(self) -> dict[str, Any]:
        return {**self._tokens.describe(), "kind": "images"}


def losses(way: str, values: dict[str, Any], tokens: dict[str, Any]) -> list[dict[str, float]]:
    """What was logged at every step of a run.

    Args:
        way: one of `WAYS`.
        values: the recipe with `task.repa.teacher` and `task.tokenizer`, and no `data`.
        tokens: `data` of a run on the token dataset; has `images`.
    """
    task = {**values["task"], "repa": dict(values["task"]["repa"])}
    data = dict(tokens)
    if way == "stored":
        del task["repa"]["teacher"]
    if way == "pixels":
        dataset = TokenDataset.open(tokens["url"])
        data = {
            "kind": "images",
            "url": tokens["images"],
            "view": dict(dataset.spec.view),
            "global_batch_size": tokens["global_batch_size"],
        }
    config = validate_recipe({**values, "task": task, "data": data}, "test")
    assert isinstance(config, TrainConfig)
    with _opened_as(way, tokens):
        ifsq_train.train.run(config, InProcessContext())
    return read_jsonl(Path(config.output) / "metrics.jsonl")


@contextmanager
def _opened_as(way: str, tokens: dict[str, Any]) -> Iterator[None]:
    """A run on pixels gets them in the order of the token runs, whose digest decides it."""

    def opened(config: Any, *, extras: Extras, **others: Any) -> TrainData:
        if way != "pixels":
            return open_train_data(config, extras=extras, **others)
        pixels = Extras(pixels=True)
        found = open_train_data(TokenDataConfig(**tokens), extras=pixels, **others)
        assert isinstance(found, TokenTrainData)
        return PixelsOfTokens(found)

    usual = ifsq_train.train.open_train_data
    ifsq_train.train.open_train_data = opened
    try:
        yield
    finally:
        ifsq_train.train.open_train_data = usual


def largest_difference(one: list[dict[str, float]], other: list[dict[str, float]]) -> float:
    """Of any loss term of any step."""
    assert len(one) == len(other)
    terms = ("loss", "alignment")
    return max(abs(a[t] - b[t]) for a, b in zip(one, other, strict=True) for t in terms)
