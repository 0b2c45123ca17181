"""A shard file of this machine, opened: mapped, and all its bytes checked the first time."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from data_pipelines.errors import DataError
from data_pipelines.storage.mapped import MappedFile
from data_pipelines.storage.verified import VERIFIED
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.shard import TokenShard, decode_shard
from data_pipelines.tokens.writer import TokenShardEntry


@dataclass(frozen=True)
class OpenShard:
    """A shard and the mapped file its columns point into."""

    file: MappedFile
    shard: TokenShard


def open_shard(path: Path, entry: TokenShardEntry, spec: TokenSpec, number: int) -> OpenShard:
    """Map and decode a shard.

    Its sha256 is compared with the recorded one, and its values with what the spec allows, unless
    this very file (inode, size, times) was found intact before by a process of this user.

    Args:
        path: of the file.
        entry: what the dataset's table says of it.
        spec: it was made to.
        number: its place.

    Raises:
        DataError: missing, unreadable, damaged, or of another dataset.
    """
    try:
        file = MappedFile(path, entry.num_bytes)
        known = VERIFIED.is_known(path, entry.sha256)
        intact = known or VERIFIED.matches(path, entry.sha256)
        file.check()
    except (OSError, DataError) as error:
        text = (
            str(error) if isinstance(error, DataError) else f"{path}: {error.strerror}; restore it"
        )
        raise DataError(
            f"{text}, or run the precompute again: it makes only what is missing"
        ) from None
    if not intact:
        raise DataError(
            f"{path} is damaged (its sha256 is not the one recorded); restore it, or delete it and "
            "run the precompute again"
        )
    shard = decode_shard(pa.py_buffer(file.data), str(path))
    found = shard.metadata
    same = shard.num_rows == entry.num_rows and found.index == number
    if not same or found.spec.digest != spec.digest:
        raise DataError(f"{path} is a shard of another dataset or place; restore the right one")
    if not known:
        if fault := shard.out_of_range():
            raise DataError(f"{path}: {fault}; delete it and run the precompute again")
        VERIFIED.remember(path, entry.sha256)
    return OpenShard(file, shard)
