"""Which classes the samples of a dataset have, as far as that can be found out quickly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipelines.images.source import ImageSource, MixedSource
from data_pipelines.manifest import ShardManifest
from ifsq_train.data.base import TrainData
from ifsq_train.data.images import ImageTrainData
from ifsq_train.data.tokens import TokenTrainData

MAX_SHARDS = 64
"""Shards whose labels are read; of larger datasets as many, evenly spread."""


@dataclass(frozen=True)
class ClassesSeen:
    """Labels of a dataset.

    Attributes:
        labels: the distinct ones, sorted; -1 stands for samples without one.
        complete: whether all shards were read.
    """

    labels: tuple[int, ...]
    complete: bool

    @property
    def known(self) -> tuple[int, ...]:
        """The labels that are classes."""
        return tuple(label for label in self.labels if label >= 0)


def classes_of(data: TrainData) -> ClassesSeen | None:
    """The labels of opened training data; None for a source that does not tell."""
    if isinstance(data, TokenTrainData):
        dataset = data.dataset
        return _seen(dataset.num_shards, lambda number: dataset.shard(number).labels)
    if isinstance(data, ImageTrainData):
        return _of_images(data.source)
    return None


def _of_images(source: ImageSource | MixedSource) -> ClassesSeen | None:
    parts = source.sources if isinstance(source, MixedSource) else [source]
    manifests = [part.manifest for part in parts if isinstance(part.manifest, ShardManifest)]
    if len(manifests) < len(parts):
        return None  # made images say their labels one by one
    if isinstance(source, MixedSource) and not source.keeps_labels:
        return ClassesSeen((-1,), complete=True)  # labels are dropped
    seen = [_seen(len(m.shard_sizes), lambda n, m=m: m.rows(n).label) for m in manifests]
    labels = sorted({label for one in seen for label in one.labels})
    return ClassesSeen(tuple(labels), all(one.complete for one in seen))


def _seen(num_shards: int, labels_of: Callable[[int], NDArray[np.int32]]) -> ClassesSeen:
    found: set[int] = set()
    numbers = list(_spread(num_shards))
    for number in numbers:
        found.update(np.unique(labels_of(number)).tolist())
    return ClassesSeen(tuple(sorted(found)), len(numbers) == num_shards)


def _spread(count: int) -> Iterator[int]:
    taken = min(count, MAX_SHARDS)
    return (index * count // taken for index in range(taken))
