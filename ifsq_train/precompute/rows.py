"""The rows of one work item, filled in as batches come back from the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipelines.bad_samples import BadSample
from data_pipelines.errors import DataError
from data_pipelines.tokens.features import encode_features, feature_precision
from data_pipelines.tokens.format import ShardMetadata, TokenSpec
from data_pipelines.tokens.latents import LATENT_LOGVAR, LATENT_MEAN, LatentSums
from data_pipelines.tokens.writer import TokenRows, encode_shard
from data_pipelines.work_items import WorkItem
from ifsq_train.precompute.encoder import EncodedArrays
from ifsq_train.precompute.pixels import PixelRows


@dataclass(frozen=True)
class EncodedItem:
    """A shard file, and the samples that had to be replaced in it."""

    item: WorkItem
    data: bytes
    bad_samples: tuple[BadSample, ...]


class ItemRows:
    """Collects an item's rows, in any order, and makes its shard."""

    def __init__(self, spec: TokenSpec, item: WorkItem, max_bad_samples: int) -> None:
        self.item = item
        self._spec, self._max_bad = spec, max_bad_samples
        self.num_rows = count = item.num_samples * spec.num_views
        self._missing = count
        groups, channels = len(spec.codebook_sizes), spec.latent_channels
        self._columns: dict[str, NDArray[Any]] = {
            "sample_ids": np.empty(count, np.int64),
            "source_ids": np.empty(count, np.int64),
            "labels": np.empty(count, np.int32),
            "views": np.empty(count, np.int64),
            "windows": np.empty((count, 4), np.uint16),
            "flips": np.empty(count, np.bool_),
            "tokens": np.empty((count, spec.tokens_per_row, groups), np.int64),
        }
        self._extra = {
            name: np.empty((count, *column.shape), column.dtype)
            for name, column in spec.extra_columns.items()
        }
        self._sums = np.empty((count, channels))
        self._squares = np.empty((count, channels))
        self._bad: dict[tuple[str, str], BadSample] = {}

    @property
    def complete(self) -> bool:
        """Whether every row is there."""
        return self._missing == 0

    def add(self, pixels: PixelRows, part: slice, encoded: EncodedArrays) -> None:
        """Fill in rows.

        Args:
            pixels: of a range of this item.
            part: which of its rows these are.
            encoded: what became of those rows.

        Raises:
            DataError: more bad samples in this item than allowed.
        """
        at = slice(pixels.rows.first + part.start, pixels.rows.first + part.stop)
        columns = self._columns
        for name in ("sample_ids", "source_ids", "labels", "views", "windows", "flips"):
            columns[name][at] = getattr(pixels, name)[part]
        rows = part.stop - part.start
        columns["tokens"][at] = encoded.tokens.reshape(rows, self._spec.tokens_per_row, -1)
        mean, logvar = self._add_latents(at, encoded)
        self._sums[at], self._squares[at] = _row_sums(mean, logvar)
        if encoded.features is not None:
            precision = feature_precision(self._spec.extra_columns)
            for name, values in encode_features(encoded.features, precision).items():
                self._extra[name][at] = values
        self._missing -= rows
        self._count_bad(pixels.bad_samples)

    def _add_latents(
        self, at: slice, encoded: EncodedArrays
    ) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Store latents; returns them as a reader gets them, rounded to the columns' precision."""
        mean, logvar = encoded.latents, encoded.logvar
        if LATENT_MEAN in self._extra:
            self._extra[LATENT_MEAN][at] = mean
            mean = self._extra[LATENT_MEAN][at]
        if LATENT_LOGVAR in self._extra:
            assert logvar is not None
            self._extra[LATENT_LOGVAR][at] = logvar
            logvar = self._extra[LATENT_LOGVAR][at]
        return mean, logvar

    def _count_bad(self, found: tuple[BadSample, ...]) -> None:
        self._bad.update({(bad.shard, bad.key): bad for bad in found})
        if len(self._bad) > self._max_bad:
            last = next(reversed(self._bad.values()))
            raise DataError(
                f"{len(self._bad)} bad samples are more than max_bad_samples={self._max_bad}; one"
                f" is {last.key} in {last.shard}: {last.reason}; repair them and pack again, or"
                " raise max_bad_samples"
            )

    def rows(self) -> TokenRows:
        """All rows of the item."""
        assert self.complete
        return TokenRows(extra=self._extra, **self._columns)

    def encoded(self) -> EncodedItem:
        """The item's shard file."""
        cells = self._spec.tokens_per_row
        sums = LatentSums.of_rows(self._sums, self._squares, cells)
        bad = tuple(self._bad[key] for key in sorted(self._bad))
        metadata = ShardMetadata(self._spec, self.item.index, sums, bad)
        return EncodedItem(self.item, encode_shard(self.rows(), metadata), bad)


def _row_sums(
    mean: NDArray[Any], logvar: NDArray[Any] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and sums of squares over the cells, float64 [B, C] each.

    With a posterior, the expected square of a sample: mean^2 + variance. Each row is one
    contiguous sum, so its bits do not depend on the rows beside it.
    """
    shape = mean.shape[:2]
    values = mean.astype(np.float64).reshape(shape[0] * shape[1], -1)
    squares = np.square(values)
    if logvar is not None:
        squares += np.exp(logvar.astype(np.float64)).reshape(squares.shape)
    return values.sum(axis=1).reshape(shape), squares.sum(axis=1).reshape(shape)
