"""One token shard, opened: columns as numpy arrays over the file's own memory."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_pipelines.errors import DataError
from data_pipelines.tokens.format import METADATA_KEY, ShardMetadata
from data_pipelines.tokens.writer import content_hash

_COLUMNS = ("label", "window", "flip")


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
        return None


def decode_shard(data: pa.Buffer | bytes, where: str) -> TokenShard:
    """Open a shard file in memory (or in a memory map); `where` names it in errors.

    Raises:
        DataError: cut, damaged in structure, or not a token shard.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(data))
        metadata = ShardMetadata.from_bytes((reader.schema.metadata or {})[METADATA_KEY])
        spec = metadata.spec
        tokens = ["tokens"] if spec.has_tokens else []
        names = [*_COLUMNS, *tokens, *sorted(spec.extra_columns)]
        if reader.num_record_batches != 1 or reader.schema.names != names:
            raise DataError(f"columns {reader.schema.names} are not {names}")
        batch = reader.get_batch(0)
        batch.validate()
        return TokenShard(
            batch,
            metadata,
            batch.column("label").to_numpy(),
            _binary_rows(batch.column("tokens"), spec.packer.row_bytes)
            if spec.has_tokens
            else np.empty((batch.num_rows, 0), np.uint8),
        )
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{where} is not a readable token shard ({reason}); restore it, or delete it and run "
            "the precompute again"
        ) from None


def _binary_rows(column: pa.Array, row_bytes: int) -> NDArray[np.uint8]:
    if column.type != pa.binary(row_bytes):
        raise DataError(f"column of {column.type} where binary({row_bytes}) was expected")
    buffer = column.buffers()[1]
    flat = np.frombuffer(buffer, np.uint8, len(column) * row_bytes, column.offset * row_bytes)
    return flat.reshape(len(column), row_bytes)
