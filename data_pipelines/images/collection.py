"""Images that are made rather than read: a dataset without files."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import DataError
from data_pipelines.images.reader import EncodedBatch


class ImageCollection(ABC):
    """Images by number, all of one size; image i is a function of i alone, on every machine.

    Attributes:
        num_samples: how many there are.
        height, width: of every image, in pixels.
        classes: names of the labels; empty if there are none.
        digest: names what the images are, at least 12 hex digits; other images, another digest.
    """

    num_samples: int
    height: int
    width: int
    classes: list[str]
    digest: str

    @abstractmethod
    def image(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Image uint8 [height, width, 3] and its label, -1 for none."""


@dataclass(frozen=True)
class _Rows:
    """Facts of all samples, as the index of a shard has them; arrays [N]."""

    height: NDArray[np.int32]
    width: NDArray[np.int32]


class CollectionDataset:
    """What data loading asks of a dataset's manifest, for a collection: one shard of all images."""

    def __init__(self, collection: ImageCollection) -> None:
        self.collection = collection
        self.num_samples, self.digest = collection.num_samples, collection.digest
        self.classes = list(collection.classes)

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """Samples of every shard, int64 [1]."""
        return np.array([self.num_samples])

    def locate(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shard and row of every sample.

        Raises:
            DataError: an id outside the collection.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < self.num_samples):
            raise DataError(f"ids {ids.min()} to {ids.max()} of {self.num_samples} made images")
        return np.zeros_like(ids), ids

    def rows(self, shard: int) -> _Rows:
        """Facts of the only shard."""
        assert shard == 0
        shape = (self.num_samples,)
        made = self.collection
        return _Rows(
            np.broadcast_to(np.int32(made.height), shape),
            np.broadcast_to(np.int32(made.width), shape),
        )


@dataclass(frozen=True)
class _MadeBatch(EncodedBatch):
    def key(self, position: int) -> str:
        return f"{int(self.ids[position]):09d}"

    def shard(self, position: int) -> str:
        del position
        return "made"

    def changed(self) -> dict[int, str]:
        return {}


class CollectionReader:
    """Makes samples and hands them on as PNG, which loses nothing, so that every decoder can."""

    def __init__(self, dataset: CollectionDataset) -> None:
        self._dataset = dataset

    def read(self, ids: NDArray[np.int64]) -> EncodedBatch:
        """The samples, in the order of `ids`.

        Raises:
            DataError: an id outside the collection, or an image of another size or type.
        """
        shards, rows = self._dataset.locate(ids)
        made = self._dataset.collection
        found = [made.image(int(row)) for row in rows]
        shape = (made.height, made.width, 3)
        for row, (image, _) in zip(rows, found, strict=True):
            if image.shape != shape or image.dtype != np.uint8:
                raise DataError(
                    f"image {row} of {type(made).__name__} is {image.dtype} {image.shape}; it"
                    f" must be uint8 {shape}"
                )
        facts: Any = self._dataset
        count = len(rows)
        return _MadeBatch(
            rows, [_png(image) for image, _ in found],
            np.array([label for _, label in found], np.int32),
            np.full(count, made.height, np.int32), np.full(count, made.width, np.int32),
            facts, shards, rows,
        )  # fmt: skip


def _png(image: NDArray[np.uint8]) -> memoryview:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getbuffer()
