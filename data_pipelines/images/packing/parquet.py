"""Images inside Parquet files, as Hugging Face datasets have them.

The image column is a struct of `bytes` (the encoded image) and `path`, or the bytes themselves;
the label column holds integers or names. Row groups are read where they lie, by ranges in object
storage; the files are never copied or unpacked.

Shards are made of whole row groups in hashed order, or of equal parts of one that is larger than a
shard, and the rows of a shard are shuffled: a global shuffle down to row groups (usually 100 rows)
that reads every byte once.
"""

import fnmatch
import functools
import io
import itertools
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError, UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.images.packing.classes import ClassMap, class_map_of
from data_pipelines.images.packing.shards import PackItem, extension_of
from data_pipelines.storage.open import Storage, open_storage

_ROWS_AT_ONCE = 64
_SPLIT = re.compile(r"(?:^|/)(train|test|validation|valid|val|dev)(?=[-_./])")


@dataclass(frozen=True)
class ParquetColumns:
    """Names of the columns; a label of None means that there are none."""

    image: str = "image"
    label: str | None = "label"


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
    classes: "ParquetClasses"
    ranges: tuple[RowRange, ...]
    seed: int | None

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
        file = _open(open_storage(self.source_url), part.file)
        wanted = [self.columns.image, *([self.columns.label] if self.columns.label else [])]
        end, at = part.first_row + part.num_rows, 0
        stem = part.file.removesuffix(".parquet").replace(".", "_")
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=[part.row_group], columns=wanted):
            first, last = max(part.first_row - at, 0), min(end - at, batch.num_rows)
            for row in range(first, last):
                number = part.first_in_file + at + row
                data, name = _image_of(batch.column(0)[row].as_py())
                label = batch.column(1)[row].as_py() if self.columns.label else None
                yield PackItem(
                    f"{stem}/{number:08d}", self.classes.number(label), extension_of(data),
                    f"{part.file} row {number}{f' ({name})' if name else ''}",
                    functools.partial(bytes, data),
                )  # fmt: skip
            at += batch.num_rows


@dataclass(frozen=True)
class ParquetClasses:
    """How values of the label column become class numbers."""

    class_map: ClassMap | None
    stored_names: tuple[str, ...]
    """Names recorded in the files for integer labels; empty where there are none."""

    def number(self, label: int | str | None) -> int:
        """Class number; -1 for a missing or negative label.

        Raises:
            UserError: the class map does not have it.
        """
        if label is None or (isinstance(label, int) and label < 0):
            return -1
        if self.class_map is None:
            assert isinstance(label, int), "names have a class map"
            return label
        named = isinstance(label, int) and label < len(self.stored_names)
        return self.class_map.number(self.stored_names[int(label)] if named else str(label))


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files of one dataset, opened: what is in them, not yet the images."""

    storage: Storage
    files: tuple[str, ...]
    ranges: tuple[RowRange, ...]
    classes: ParquetClasses
    class_names: tuple[str, ...]


def open_parquet(
    source_url: str,
    columns: ParquetColumns,
    *,
    pattern: str = "*",
    shard_bytes: int,
    class_map: ClassMap | None = None,
) -> ParquetSource:
    """Find the files, check their columns, and cut them into ranges of at most `shard_bytes`.

    Args:
        pattern: which files, by their path below `source_url`.

    Raises:
        UserError: no files, several splits at once, or no such columns.
        DataError: a file that is no Parquet file.
    """
    storage = open_storage(source_url)
    found = [path for path in storage.list() if path.endswith(".parquet")]
    files = [path for path in found if fnmatch.fnmatch(path, pattern)]
    if not files:
        some = f"has {found[0]} and others" if found else "holds no .parquet files"
        raise UserError(f"{storage.url} {some}; no file matches {pattern!r}: check both")
    splits = sorted({match[1] for path in files if (match := _SPLIT.search(path))})
    if len(splits) > 1:
        raise UserError(
            f"{storage.url} holds the splits {', '.join(splits)};"
            f" choose one, for example with --files '*{splits[-1]}-*'"
        )
    opened = [_open(storage, path) for path in files]
    kinds = {
        _check_columns(storage, path, f, columns) for path, f in zip(files, opened, strict=True)
    }
    stored = _stored_names(opened[0].schema_arrow, columns.label)
    labels = _label_values(opened, columns.label) if columns.label else set()
    if "names" in kinds and class_map is None:
        class_map = class_map_of(sorted(str(label) for label in labels))
    names: tuple[str, ...] = stored
    if class_map is not None:
        names = tuple(class_map.names)
    elif not stored:
        top = max((int(label) for label in labels), default=-1)
        names = tuple(str(number) for number in range(top + 1))
    ranges = [
        part
        for path, file in zip(files, opened, strict=True)
        for part in _ranges(path, file.metadata, columns.image, shard_bytes)
    ]
    classes = ParquetClasses(class_map, stored)
    for label in labels:
        classes.number(label)
    return ParquetSource(storage, tuple(files), tuple(ranges), classes, names)


class _StorageFile(io.RawIOBase):
    """An object as a seekable file of range reads, for pyarrow."""

    def __init__(self, storage: Storage, path: str) -> None:
        super().__init__()
        self._storage, self._path = storage, path
        self._size, self._at = storage.size(path), 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(self._size - self._at, 0)
        length = left if size is None or size < 0 else min(size, left)
        data = self._storage.read_range(self._path, self._at, length) if length else b""
        self._at += length
        return data


def _open(storage: Storage, path: str) -> pq.ParquetFile:
    local = storage.local_path(path)
    try:
        if local is not None:
            return pq.ParquetFile(local, memory_map=True)
        return pq.ParquetFile(pa.PythonFile(_StorageFile(storage, path), "r"), pre_buffer=True)
    except pa.ArrowInvalid as error:
        first_line = str(error).splitlines()[0]
        raise DataError(f"{storage.url}/{path} is no Parquet file ({first_line})") from None


def _check_columns(
    storage: Storage, path: str, file: pq.ParquetFile, columns: ParquetColumns
) -> str:
    """What the labels are: integers, names or none."""
    schema = file.schema_arrow
    for name in (columns.image, columns.label):
        if name is not None and name not in schema.names:
            raise UserError(
                f"{storage.url}/{path} has no column {name!r}; it has"
                f" {', '.join(schema.names)}: use --image-column and --label-column"
            )
    image = schema.field(columns.image).type
    holder = image.field("bytes").type if _is_image_struct(image) else image
    if not (pa.types.is_binary(holder) or pa.types.is_large_binary(holder)):
        raise UserError(
            f"{storage.url}/{path}: column {columns.image!r} is {image}, expected binary or a"
            " struct with a field 'bytes' that holds encoded images"
        )
    if columns.label is None:
        return "none"
    label = schema.field(columns.label).type
    if pa.types.is_integer(label):
        return "integers"
    if pa.types.is_string(label) or pa.types.is_large_string(label):
        return "names"
    raise UserError(
        f"{storage.url}/{path}: column {columns.label!r} is {label}, expected integers or names;"
        " use --label-column"
    )


def _is_image_struct(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0


def _stored_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Class names that the datasets library wrote into the schema."""
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(facts["info"]["features"][label]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


def _label_values(files: Sequence[pq.ParquetFile], label: str) -> set[Any]:
    found: set[Any] = set()
    for file in files:
        found.update(file.read(columns=[label]).column(label).unique().to_pylist())
    return found - {None}


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
