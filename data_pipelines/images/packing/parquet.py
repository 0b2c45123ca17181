"""Images inside Parquet files, as Hugging Face datasets have them.

The image column is a struct of `bytes` (the encoded image) and `path`, or the bytes themselves;
the label column holds integers or names. Row groups are read where they lie, by ranges in object
storage; the files are never copied or unpacked.

Shards are made of whole row groups in hashed order, or of equal parts of one that is larger than a
shard, and the rows of a shard are shuffled: a global shuffle down to row groups (usually 100 rows)
that reads every byte once.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from data_pipelines.hashing import hash_u64
from data_pipelines.images.decoders.limits import BadImage
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.parquet_files import (
    ParquetColumns,
    check_columns,
    choose_files,
    fit_columns,
    open_file,
    partition_label,
    reading_parquet,
)
from data_pipelines.images.packing.parquet_labels import ParquetClasses, open_labels
from data_pipelines.images.packing.shards import PackItem, extension_of
from data_pipelines.storage.open import Storage, open_storage

_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class RowRange:
    """Rows `[first_row, first_row + num_rows)` of a row group of a file."""

    file: str
    row_group: int
    first_row: int
    num_rows: int
    first_in_file: int
    """Number within the file of the row group's first row."""
    num_bytes: int
    """Stored size of their images, estimated from the row group's."""


@dataclass(frozen=True)
class ParquetItems:
    """Rows of Parquet files as the items of a shard; shuffled unless `seed` is None."""

    source_url: str
    columns: ParquetColumns
    classes: ParquetClasses
    ranges: tuple[RowRange, ...]
    seed: int | None
    skip_empty: bool = False
    """Rows without bytes are passed over: img2dataset writes one for a failed download."""

    def __len__(self) -> int:
        return sum(part.num_rows for part in self.ranges)

    def __iter__(self) -> Iterator[PackItem]:
        rows = [row for part in self.ranges for row in self._read(part)]
        if self.seed is not None:
            numbers = np.arange(len(rows))
            first = self.ranges[0]
            key = (self.seed, len(self), first.first_in_file, first.first_row)
            rows = [rows[i] for i in np.argsort(hash_u64(*key, numbers), kind="stable")]
        yield from rows

    def _read(self, part: RowRange) -> Iterator[PackItem]:
        storage = open_storage(self.source_url)
        file = open_file(storage, part.file)
        label = self.columns.label
        if label is not None and partition_label(part.file, label) is not None:
            label = None
        wanted = [self.columns.image, *([label] if label else [])]
        end, at = part.first_row + part.num_rows, 0
        with reading_parquet(storage, part.file):
            for batch in file.iter_batches(
                _ROWS_AT_ONCE, row_groups=[part.row_group], columns=wanted
            ):
                images = batch.column(self.columns.image)
                labels = batch.column(label) if label else None
                first, last = max(part.first_row - at, 0), min(end - at, batch.num_rows)
                for row in range(first, last):
                    data, name = _image_of(images[row].as_py())
                    if data or not self.skip_empty:
                        value = labels[row].as_py() if labels is not None else None
                        yield self._item(part, at + row, data, name, value)
                at += batch.num_rows

    def _item(
        self, part: RowRange, row: int, data: bytes, name: str | None, label: Any
    ) -> PackItem:
        number = part.first_in_file + row
        stem = part.file.removesuffix(".parquet").replace(".", "_")
        load = functools.partial(_loaded, data, name)
        class_number = -1
        if self.columns.label is not None:
            class_number = self.classes.number(part.file, label)
        return PackItem(
            f"{stem}/{number:08d}", class_number, extension_of(data),
            f"{part.file} row {number}{f' ({name})' if name else ''}", load,
        )  # fmt: skip


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files of one dataset, opened: what is in them, not yet the images."""

    storage: Storage
    files: tuple[str, ...]
    ranges: tuple[RowRange, ...]
    classes: ParquetClasses
    columns: ParquetColumns
    is_download: bool
    """img2dataset made them."""


def open_parquet(
    source_url: str,
    columns: ParquetColumns,
    *,
    pattern: str = "*",
    shard_bytes: int,
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
) -> ParquetSource:
    """Find the files, check their columns, and cut them into ranges of at most `shard_bytes`.

    Args:
        pattern: which files, by their path below `source_url`.

    Raises:
        UserError: no files, several splits at once, no such columns, or labels that have no
            numbers.
        DataError: a file that is no Parquet file.
    """
    storage = open_storage(source_url)
    paths = choose_files(storage, pattern)
    files = [(path, open_file(storage, path)) for path in paths]
    fitted = fit_columns(files[0][1].schema_arrow, columns)
    for path, file in files:
        check_columns(storage, path, file.schema_arrow, fitted)
    classes = open_labels(storage, files, fitted.label, class_map, num_classes)
    ranges = [
        part
        for path, file in files
        for part in _ranges(path, file.metadata, fitted.image, shard_bytes)
    ]
    return ParquetSource(storage, tuple(paths), tuple(ranges), classes, fitted, fitted != columns)


def _ranges(
    path: str, metadata: pq.FileMetaData, image: str, shard_bytes: int
) -> Iterator[RowRange]:
    first_in_file = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = (group.column(i) for i in range(group.num_columns))
        num_bytes = sum(
            chunk.total_uncompressed_size
            for chunk in chunks
            if chunk.path_in_schema in (image, f"{image}.bytes")
        )
        parts = min(max(1, -(-num_bytes // shard_bytes)), max(1, group.num_rows))
        bounds = [part * group.num_rows // parts for part in range(parts + 1)]
        for first, last in itertools.pairwise(bounds):
            if last > first:
                yield RowRange(path, number, first, last - first, first_in_file, num_bytes // parts)
        first_in_file += group.num_rows


def _image_of(value: Any) -> tuple[bytes, str | None]:
    """Encoded bytes (empty where there are none) and the recorded name."""
    if isinstance(value, dict):
        return value.get("bytes") or b"", value.get("path")
    return value or b"", None


def _loaded(data: bytes, name: str | None) -> bytes:
    if not data and name:
        raise BadImage("empty file: the row holds a path, not the image's bytes")
    return data
