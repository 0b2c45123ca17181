"""Rows of a work item to pixels: what an encoder needs of the source, on its machine or another."""

from __future__ import annotations

import queue
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.images.collection import CollectionDataset
from data_pipelines.images.decoders.base import ImageDecoder, to_unit_range
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.source import ImageBatch, ImageSource
from data_pipelines.manifest import ShardManifest
from data_pipelines.views import ViewGeometry, view_geometry
from data_pipelines.work_items import WorkItem
from ifsq_train.config import PrecomputeConfig
from ifsq_train.plugins.sources import open_images_of

EPOCH = 0
"""Token datasets hold the views of epoch 0."""


@dataclass(frozen=True)
class RowRange:
    """Rows [first, last) of an item: row r is view r % num_views of its sample r // num_views."""

    item: WorkItem
    first: int
    last: int


@dataclass(frozen=True)
class PixelRows:
    """The rows of a range.

    images: float32 [N, 3, H, W] in [-1, 1], or uint8 in [0, 255] where they travel.
    sample_ids, source_ids, views: int64 [N], see `TokenRows`.
    labels: int32 [N].
    windows: uint16 [N, 4]; flips: bool [N], see `TokenRows`.
    bad_samples: those met, in any order.
    """

    rows: RowRange
    images: Tensor
    sample_ids: NDArray[np.int64]
    source_ids: NDArray[np.int64]
    labels: NDArray[np.int32]
    views: NDArray[np.int64]
    windows: NDArray[np.uint16]
    flips: NDArray[np.bool_]
    bad_samples: tuple[BadSample, ...]

    def unit_range(self) -> PixelRows:
        """With images as float32 in [-1, 1]."""
        if self.images.dtype != torch.uint8:
            return self
        return replace(self, images=to_unit_range(self.images))

    def packed(self) -> PixelRows:
        """With images as uint8, a quarter of the bytes; `unit_range` gives the very same floats."""
        images = self.images.add(1.0).mul_(127.5).round_().to(torch.uint8)
        return replace(self, images=images)


def split_rows(item: WorkItem, num_views: int, batch_size: int) -> Iterator[RowRange]:
    """All rows of an item, at most `batch_size` at a time."""
    count = item.num_samples * num_views
    for first in range(0, count, batch_size):
        yield RowRange(item, first, min(first + batch_size, count))


class ViewPixels:
    """Reads and decodes rows; several threads may ask at once.

    Args:
        config: the recipe.
        device: where the images come out.
        decode_threads: of the decoder; None takes the CPUs this process may use.
        readers: ranges read at the same time.

    Raises:
        UserError: missing dataset, or a decoder that is not installed.
    """

    def __init__(
        self,
        config: PrecomputeConfig,
        device: str = "cpu",
        decode_threads: int | None = None,
        readers: int = 2,
    ) -> None:
        self.manifest = open_images_of(config.source)
        self.num_readers = readers
        self._num_views = config.view.num_views
        self._decoder: ImageDecoder = open_decoder(
            config.decoder, config.view.size, device, decode_threads
        )
        self.decoder_name = self._decoder.name
        self._max_bad = config.max_bad_samples
        # A source for each thread: bad samples are told apart by whose budget they land in.
        self._sources: queue.SimpleQueue[ImageSource] = queue.SimpleQueue()
        for _ in range(readers):
            self._sources.put(self._open_source(config))

    def _open_source(self, config: PrecomputeConfig) -> ImageSource:
        return ImageSource(
            self.manifest,
            config.view,
            self._decoder,
            ErrorBudget(self._max_bad),
            seed=config.view_seed,
            verify=True,
        )

    def decode(self, rows: RowRange) -> PixelRows:
        """The pixels and facts of a range, a function of the source and the view alone.

        Raises:
            DataError: unreadable source, or more bad samples among these rows than allowed.
        """
        at = np.arange(rows.first, rows.last, dtype=np.int64)
        ids, views = rows.item.first_sample + at // self._num_views, at % self._num_views
        source = self._sources.get()
        try:
            source.budget = ErrorBudget(self._max_bad)
            batch = source.batch(ids, EPOCH, views)
            bad = tuple(map(_portable, source.budget.bad_samples))
            return _with_geometry(rows, source, batch, bad)
        finally:
            self._sources.put(source)

    def close(self) -> None:
        """Stop the decoder."""
        self._decoder.close()


def _with_geometry(
    rows: RowRange, source: ImageSource, batch: ImageBatch, bad: tuple[BadSample, ...]
) -> PixelRows:
    used = batch.sample_ids.copy()
    for replacement in batch.replacements:
        used[replacement.position] = replacement.used_id
    heights, widths = _image_sizes(source.manifest, used)
    geometry = view_geometry(
        source.spec,
        seed=source.seed,
        epoch=EPOCH,
        sample_ids=used,
        views=batch.views,
        heights=heights,
        widths=widths,
    )
    return PixelRows(
        rows, batch.images, batch.sample_ids, used,
        batch.labels.cpu().numpy().astype(np.int32), batch.views,
        _windows(geometry), geometry.flips, bad,
    )  # fmt: skip


def _windows(geometry: ViewGeometry) -> NDArray[np.uint16]:
    sizes = (geometry.resized_heights, geometry.resized_widths, geometry.tops, geometry.lefts)
    return np.minimum(np.stack(sizes, axis=1), np.iinfo(np.uint16).max).astype(np.uint16)


def _image_sizes(
    manifest: ShardManifest | CollectionDataset, ids: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    shards, rows = manifest.locate(ids)
    heights, widths = np.empty(len(ids), np.int32), np.empty(len(ids), np.int32)
    for shard in np.unique(shards).tolist():
        at = shards == shard
        heights[at] = manifest.rows(shard).height[rows[at]]
        widths[at] = manifest.rows(shard).width[rows[at]]
    return heights, widths


def _portable(bad: BadSample) -> BadSample:
    """Without memory addresses, which some libraries put into their messages."""
    return replace(bad, reason=re.sub(r"0x[0-9a-fA-F]+", "0x", bad.reason))
