"""Shards of object storage as files of this machine, shared by its processes."""

import hashlib
import os
import tempfile
from pathlib import Path

from data_pipelines.errors import DataError
from data_pipelines.storage.local import LocalStorage
from data_pipelines.storage.open import Storage
from data_pipelines.storage.private import make_private
from data_pipelines.storage.verified import VERIFIED
from data_pipelines.tokens.writer import TokenShardEntry


def local_copy(storage: Storage, entry: TokenShardEntry, folder: Path) -> Path:
    """The shard as a file below `folder`; downloaded and checked if it is not there yet.

    Raises:
        DataError: it is missing, or not the one recorded.
    """
    _make_folder(folder)
    cache = LocalStorage(folder)
    path = cache.local_path(entry.name)
    if not _is_intact(path, entry):
        data = storage.read(entry.name)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise DataError(
                f"{storage.url}/{entry.name} is damaged (its sha256 is not the one recorded); "
                "delete it and run the precompute again"
            )
        cache.write(entry.name, data)
    return path


def _make_folder(folder: Path) -> None:
    """Of this user alone: whoever can write here decides what is trained on."""
    if folder.parent == _default_parent():
        make_private(folder.parent)
    folder.parent.mkdir(parents=True, exist_ok=True)
    make_private(folder)


def _is_intact(path: Path, entry: TokenShardEntry) -> bool:
    """Whether the copy there is the shard recorded; a damaged one is fetched again."""
    try:
        if path.stat().st_size != entry.num_bytes:
            return False
        return VERIFIED.is_known(path, entry.sha256) or VERIFIED.matches(path, entry.sha256)
    except OSError:
        return False


def default_cache_folder(digest: str) -> Path:
    """Where shards of a remote dataset are kept on this machine, per user."""
    return _default_parent() / digest[:32]


def _default_parent() -> Path:
    return Path(tempfile.gettempdir()) / f"ifsq-tokens-{os.getuid()}"
