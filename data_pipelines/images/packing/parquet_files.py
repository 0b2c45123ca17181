"""Parquet files one by one: opening them, what their columns are, and which to take."""

import contextlib
import fnmatch
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.impostors import what_it_is
from data_pipelines.images.packing.places import name_format
from data_pipelines.images.packing.samples import is_hidden
from data_pipelines.storage.open import Storage

_SPLIT = re.compile(
    r"(?:^|[-_./=])(train|training|test|testing|validation|valid|val|dev|eval)(?=[-_./])", re.I
)
_SNAPSHOT = re.compile(r"(?:^|/)snapshots/([^/]+)/")
PARQUET_EXTENSIONS = (".parquet", ".pq", ".parq")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_DOWNLOADED = ("jpg", "png", "webp")
_DOWNLOAD_COLUMNS = frozenset(("url", "key", "status"))
_HEAD_BYTES = 512
_DAMAGE = (
    pa.ArrowException,
    OSError,
    ValueError,
    OverflowError,
    LookupError,
    MemoryError,
    TypeError,
    AttributeError,
    RecursionError,
)
"""What pyarrow raises for bytes that are no Parquet."""


@dataclass(frozen=True)
class ParquetColumns:
    """Names of the columns; a label of None means that there are none."""

    image: str = "image"
    label: str | None = "label"


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


@contextlib.contextmanager
def reading_parquet(storage: Storage, path: str) -> Iterator[None]:
    """Damage met while reading is a DataError that names the file."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(
            f"{storage.url}/{path} is a link to a file that is not there; restore or delete it"
        ) from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        found = what_it_is(storage.read_range(path, 0, min(_HEAD_BYTES, storage.size(path))))
        if found and found != "a Parquet file":
            first_line = f"it is {found}"
        raise DataError(
            f"{storage.url}/{path} is no Parquet file or damaged ({first_line}); restore it"
        ) from None


def open_file(storage: Storage, path: str) -> pq.ParquetFile:
    """A Parquet file, mapped or by range reads. Raises DataError for anything else."""
    local = storage.local_path(path)
    with reading_parquet(storage, path):
        if local is not None:
            return pq.ParquetFile(local, memory_map=True)
        return pq.ParquetFile(pa.PythonFile(_StorageFile(storage, path), "r"), pre_buffer=True)
    raise AssertionError


def is_parquet(path: str) -> bool:
    """Whether a file is one of Parquet by its name, and not hidden."""
    return path.lower().endswith(PARQUET_EXTENSIONS) and not is_hidden(path)


def choose_files(storage: Storage, pattern: str) -> list[str]:
    """Paths of the files to take.

    Raises:
        UserError: none, or several splits or revisions at once.
    """
    paths = storage.list()
    found = [path for path in paths if is_parquet(path)]
    files = [path for path in found if fnmatch.fnmatch(path, pattern)]
    if not files:
        some = f"has {found[0]} and others" if found else "holds no .parquet files"
        hint = name_format(paths) if not found else ""
        raise UserError(
            f"{storage.url} {some}; no file matches {pattern!r}: check both"
            + (f" ({hint})" if hint else "")
        )
    splits = sorted({found[-1] for path in files if (found := _SPLIT.findall(path))})
    if len({split.lower() for split in splits}) > 1:
        first = sorted(splits, key=lambda split: "train" not in split.lower())[0]
        raise UserError(
            f"{storage.url} holds the splits {', '.join(splits)};"
            f" choose one, for example with --files '*{first}*'"
        )
    revisions = sorted({match[1] for path in files if (match := _SNAPSHOT.search(path))})
    if len(revisions) > 1:
        raise UserError(
            f"{storage.url} holds {len(revisions)} revisions of a dataset; choose one, for example"
            f" with --files '*snapshots/{revisions[-1]}/*'"
        )
    return files


def fit_columns(schema: pa.Schema, columns: ParquetColumns) -> ParquetColumns:
    """The columns of img2dataset where the usual ones are asked for and its own are there."""
    if columns != ParquetColumns() or columns.image in schema.names:
        return columns
    if set(schema.names) >= _DOWNLOAD_COLUMNS:
        for name in _DOWNLOADED:
            if name in schema.names and _holds_bytes(schema.field(name).type):
                return ParquetColumns(name, None)
    return columns


def check_columns(storage: Storage, path: str, schema: pa.Schema, columns: ParquetColumns) -> None:
    """Raises UserError for columns that are missing or of another type than needed."""
    names = [columns.image]
    if columns.label is not None and partition_label(path, columns.label) is None:
        names.append(columns.label)
    for name in names:
        if name not in schema.names:
            none = ", or --label-column '' for none" if name == columns.label else ""
            raise UserError(
                f"{storage.url}/{path} has no column {name!r}; it has"
                f" {', '.join(schema.names)}: use --image-column and --label-column{none}"
            )
        if schema.names.count(name) > 1:
            raise UserError(
                f"{storage.url}/{path} has {schema.names.count(name)} columns {name!r}; rename"
                " all but one"
            )
    image = schema.field(columns.image).type
    if not _holds_bytes(_holder(image)):
        text = is_text(image)
        raise UserError(
            f"{storage.url}/{path}: column {columns.image!r} is {image}, expected binary or a"
            " struct with a field 'bytes' that holds encoded images"
            + ("; text such as paths or URLs is not followed" if text else "")
        )
    if columns.label is None or columns.label not in schema.names:
        return
    label = schema.field(columns.label).type
    if pa.types.is_dictionary(label):
        label = label.value_type
    if not (is_text(label) or _is_number(label) or pa.types.is_null(label)):
        raise UserError(
            f"{storage.url}/{path}: column {columns.label!r} is {label}, expected integers or"
            " names, one for each image; use --label-column"
        )


def partition_label(path: str, label: str | None) -> str | None:
    """The label a folder such as `label=cat` gives; None where there is no such folder, and
    empty where its rows have no label."""
    for part in path.split("/")[:-1]:
        name, equals, value = part.partition("=")
        if equals and name == label:
            return "" if value == _NO_PARTITION else unquote(value)
    return None


def stored_names(schema: pa.Schema, label: str | None) -> tuple[str, ...]:
    """Class names that the datasets library wrote into the schema."""
    try:
        facts = json.loads((schema.metadata or {})[b"huggingface"])
        names = facts["info"]["features"][label]["names"]
        return tuple(names) if all(isinstance(name, str) for name in names) else ()
    except (KeyError, TypeError, ValueError, RecursionError):
        return ()


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this type are text."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_floating(kind)


def _holder(kind: pa.DataType) -> pa.DataType:
    """The type of the bytes: of the struct's field, or the column itself."""
    is_image = pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    if is_image:
        return kind.field("bytes").type
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _holds_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def has_image_column(storage: Storage, files: Sequence[str], columns: ParquetColumns) -> bool:
    """Whether the first file has the column of images, or that of img2dataset."""
    schema = open_file(storage, files[0]).schema_arrow
    return fit_columns(schema, columns).image in schema.names
