"""Buckets in this process's memory: `ObjectStorage` as it is, over obstore's own memory store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError
from obstore.store import MemoryStore

from data_pipelines.storage import objects


class BucketRecord:
    """Changes in order, as ``(operation, path)``; those from number `fail_at` on are refused.

    Attributes:
        operations: ``put`` or ``delete`` and the path below the bucket's prefix.
        fail_at: may be set at any time; None lets everything through.
    """

    def __init__(self) -> None:
        self.operations: list[tuple[str, str]] = []
        self.fail_at: int | None = None

    def note(self, operation: str, path: str) -> None:
        if self.fail_at is not None and len(self.operations) >= self.fail_at:
            raise GenericError("the store says 503 SlowDown")
        self.operations.append((operation, path))


@contextmanager
def memory_buckets() -> Iterator[BucketRecord]:
    """For a block, each ``s3://`` URL is a bucket of its own that starts empty."""
    record, stores = BucketRecord(), dict[str, Any]()
    real_put, real_delete = obstore.put, obstore.delete

    def open_store(url: str, *_: object) -> MemoryStore:
        return stores.setdefault(url, MemoryStore())

    def put(store: Any, path: str, *given: Any, **options: Any) -> Any:
        record.note("put", path)
        return real_put(store, path, *given, **options)

    def delete(store: Any, path: str) -> None:
        record.note("delete", path)
        real_delete(store, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_open_store", open_store)
        patch.setattr(obstore, "put", put)
        patch.setattr(obstore, "delete", delete)
        patch.setenv("AWS_ACCESS_KEY_ID", "anybody")
        yield record
