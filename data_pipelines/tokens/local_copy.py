"""Shards of object storage as files of this machine, shared by its processes."""

import hashlib
import os
import tempfile
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.storage.open import LocalStorage, Storage
from data_pipelines.tokens.writer import TokenShardEntry


def local_copy(storage: Storage, entry: TokenShardEntry, folder: Path) -> Path:
    """The shard as a file below `folder`; downloaded and checked if it is not there yet.

    Raises:
        DataError: it is missing, or not the one recorded.
    """
    cache = LocalStorage(folder)
    path = cache.local_path(entry.name)
    if not path.is_file() or path.stat().st_size != entry.num_bytes:
        data = storage.read(entry.name)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DataError(
                f"{storage.url}/{entry.name} is damaged (its sha256 is not the one recorded); "
                "delete it and run the precompute again"
            )
        cache.write(entry.name, data)
    return path


def default_cache_folder(digest: str) -> Path:
    """Where shards of a remote dataset are kept on this machine, per user."""
    return Path(tempfile.gettempdir()) / f"ifsq-tokens-{os.getuid()}" / digest[:32]
