"""Labels of a dataset against the classes of the network that is trained on them."""

from __future__ import annotations

import numpy as np

from data_pipelines.errors import UserError
from data_pipelines.images.collection import CollectionDataset
from data_pipelines.images.source import ImageSource
from data_pipelines.manifest import ShardManifest
from ifsq_train.data.base import TrainData
from ifsq_train.data.images import ImageTrainData
from ifsq_train.data.tokens import TokenTrainData

TOKEN_SHARDS_READ = 32
"""Of a token dataset, whose shards are opened for it; spread evenly over all."""


def check_labels(data: TrainData, num_classes: int) -> None:
    """Refuse labels that the network has no class for, before the first step.

    Label `num_classes` stands for "no label" in a generator, so one that is too large would train
    that instead, or end the run somewhere in the middle.

    Raises:
        UserError: a label of `num_classes` or more.
    """
    largest, where = -1, ""
    if isinstance(data, ImageTrainData):
        source = data.source
        sources = [source] if isinstance(source, ImageSource) else list(source.sources)
        if not isinstance(source, ImageSource) and not source.keeps_labels:
            return
        largest, where = max(_largest_of_images(part.manifest) for part in sources)
    elif isinstance(data, TokenTrainData):
        dataset = data.dataset
        count = min(dataset.num_shards, TOKEN_SHARDS_READ)
        chosen = np.unique(np.linspace(0, dataset.num_shards - 1, count).astype(int))
        labels = [dataset.shard(int(number)).labels for number in chosen]
        largest, where = max((int(found.max(initial=-1)) for found in labels), default=-1), "tokens"
    if largest >= num_classes:
        raise UserError(
            f"task.model.num_classes={num_classes}, but {where} has the label {largest}; set"
            f" num_classes to {largest + 1} or more, or correct the labels"
        )


def _largest_of_images(manifest: ShardManifest | CollectionDataset) -> tuple[int, str]:
    """The largest label of an image and where it is; without an account, the last class."""
    last = len(manifest.classes) - 1
    if isinstance(manifest, CollectionDataset):
        return last, "the source of made images"
    counts = manifest.facts.get("account", {}).get("class_counts")
    if counts is not None:
        last = max((label for label, count in enumerate(counts) if count), default=-1)
    return last, manifest.storage.url
