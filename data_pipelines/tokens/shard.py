"""One token shard, opened: columns as numpy arrays over the file's own memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.tokens.format import METADATA_KEY, ShardMetadata, TokenSpec
from data_pipelines.tokens.writer import content_hash

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class TokenShard:
    """Columns of N rows; arrays are read-only views where Arrow's layout allows.

    labels: as in `TokenRows`.
    packed: uint8 [N, row_bytes], see `TokenPacker`; [N, 0] where there are no tokens.
    """

    batch: pa.RecordBatch
    metadata: ShardMetadata
    labels: NDArray[np.int32]
    packed: NDArray[np.uint8]

    @property
    def num_rows(self) -> int:
        return self.batch.num_rows

    @property
    def sample_ids(self) -> NDArray[np.int64]:
        """int64 [N], by the rows' places."""
        spec = self.metadata.spec
        first, _ = spec.shard_range(self.metadata.index)
        return first + np.arange(self.num_rows, dtype=np.int64) // spec.num_views

    @property
    def views(self) -> NDArray[np.int64]:
        """int64 [N], by the rows' places."""
        return np.arange(self.num_rows, dtype=np.int64) % self.metadata.spec.num_views

    @property
    def source_ids(self) -> NDArray[np.int64]:
        """int64 [N], whose pixels were encoded: the same, but for replaced bad samples."""
        ids = self.sample_ids
        for row, used in self.metadata.replaced:
            ids[row] = used
        return ids

    @property
    def windows(self) -> NDArray[np.uint16]:
        """uint16 [N, 4], as in `TokenRows`."""
        return self.batch.column("window").flatten().to_numpy().reshape(-1, 4)

    @property
    def flips(self) -> NDArray[np.bool_]:
        return self.batch.column("flip").to_numpy(zero_copy_only=False)

    def tokens(self) -> NDArray[np.int64]:
        """int64 [N, T] or [N, T, G]; G is 0 where there are none."""
        spec = self.metadata.spec
        if not spec.has_tokens:
            return np.empty((self.num_rows, spec.tokens_per_row, 0), np.int64)
        return spec.packer.unpack(self.packed)

    def extra(self, name: str) -> NDArray[Any]:
        """An extra column [N, ...] as the spec describes it.

        Raises:
            DataError: the shard has no such column.
        """
        column = self.metadata.spec.extra_columns.get(name)
        if column is None:
            found = ", ".join(self.metadata.spec.extra_columns) or "none"
            raise DataError(f"token shards have no extra column {name!r}, they have: {found}")
        raw = _binary_rows(self.batch.column(name), column.row_bytes)
        return raw.view(column.dtype).reshape(self.num_rows, *column.shape)

    def damage(self) -> str | None:
        """What is wrong with the contents, reading all of them; None where nothing is."""
        if content_hash(self.batch, self.metadata) != self.metadata.content_sha256:
            return "its contents are not those written"
        return self.out_of_range()

    def out_of_range(self) -> str | None:
        """The first value that the spec does not allow, reading all tokens, labels and latents."""
        if len(self.labels) and int(self.labels.min()) < -1:
            return f"it has the label {int(self.labels.min())}; labels are 0 or more, -1 for none"
        spec = self.metadata.spec
        if spec.has_tokens:
            for first in range(0, self.num_rows, _ROWS_AT_ONCE):
                found = spec.packer.out_of_range(self.packed[first : first + _ROWS_AT_ONCE])
                if found is not None:
                    return f"it has the token {found[0]} of a codebook of {found[1]}"
        for name, column in spec.extra_columns.items():
            if np.dtype(column.dtype).kind != "f":
                continue
            finite = _finite_rows(self.extra(name))
            if not finite.all():
                row = int(np.flatnonzero(~finite)[0])
                return (
                    f"{int((~finite).sum())} of its rows have values in {name} that are not finite"
                    f", first that of sample {int(self.sample_ids[row])}"
                )
        return None


def _finite_rows(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Bool [N]: whether all values [N, ...] of a row are finite."""
    found = np.empty(len(values), np.bool_)
    for first in range(0, len(values), _ROWS_AT_ONCE):
        block = values[first : first + _ROWS_AT_ONCE]
        found[first : first + _ROWS_AT_ONCE] = np.isfinite(block.reshape(len(block), -1)).all(1)
    return found


def decode_shard(data: pa.Buffer | bytes, where: str) -> TokenShard:
    """Open a shard file in memory (or in a memory map); `where` names it in errors.

    Raises:
        DataError: cut, damaged in structure, or not a token shard.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(data))
        metadata = ShardMetadata.from_bytes((reader.schema.metadata or {}).get(METADATA_KEY, b""))
        spec = metadata.spec
        _check_place(metadata)
        expected = _schema(spec)
        if reader.num_record_batches != 1 or not reader.schema.equals(expected):
            found = f"{reader.num_record_batches} batches of columns {_columns(reader.schema)}"
            raise DataError(f"{found} are not 1 of {_columns(expected)}")
        batch = reader.get_batch(0)
        batch.validate(full=True)
        if any(column.null_count for column in batch.columns):
            raise DataError("it has missing values")
        return TokenShard(
            batch,
            metadata,
            batch.column("label").to_numpy(),
            _binary_rows(batch.column("tokens"), spec.packer.row_bytes)
            if spec.has_tokens
            else np.empty((batch.num_rows, 0), np.uint8),
        )
    except (
        pa.ArrowException, OSError, MemoryError, ValueError, KeyError, TypeError, AttributeError,
        IndexError, OverflowError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{where} is not a readable token shard ({reason}); restore it, or delete it and run "
            "the precompute again"
        ) from None


def _schema(spec: TokenSpec) -> pa.Schema:
    """Names and types of a shard's columns, as the writer makes them."""
    columns: list[tuple[str, pa.DataType]] = [
        ("label", pa.int32()),
        ("window", pa.list_(pa.uint16(), 4)),
        ("flip", pa.bool_()),
    ]
    if spec.has_tokens:
        columns.append(("tokens", pa.binary(spec.packer.row_bytes)))
    columns += [
        (name, pa.binary(column.row_bytes)) for name, column in sorted(spec.extra_columns.items())
    ]
    return pa.schema(columns)


def _columns(schema: pa.Schema) -> list[str]:
    return [f"{field.name}: {field.type}" for field in schema]


def _check_place(metadata: ShardMetadata) -> None:
    """Raises DataError where index or replaced rows are not of the spec."""
    spec, index = metadata.spec, metadata.index
    if index >= spec.num_shards:
        raise DataError(f"it says it is shard {index} of {spec.num_shards}")
    rows = spec.shard_range(index)[1] * spec.num_views
    for row, used in metadata.replaced:
        if row >= rows or used >= spec.num_samples:
            raise DataError(f"row {row} of {rows} is of sample {used} of {spec.num_samples}")


def _binary_rows(column: pa.Array, row_bytes: int) -> NDArray[np.uint8]:
    if column.type != pa.binary(row_bytes):
        raise DataError(f"column of {column.type} where binary({row_bytes}) was expected")
    buffer = column.buffers()[1]
    flat = np.frombuffer(buffer, np.uint8, len(column) * row_bytes, column.offset * row_bytes)
    return flat.reshape(len(column), row_bytes)
