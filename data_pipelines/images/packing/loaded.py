"""Samples held in memory as the items of shards."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.errors import UserError
from data_pipelines.images.packing.shards import PackItem, extension_of


@dataclass(frozen=True)
class LoadedItems:
    """Samples held in memory as the items of a shard."""

    samples: Sequence[tuple[str, bytes, int]]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[PackItem]:
        for key, data, label in self.samples:
            yield PackItem(key, label, extension_of(data), key, functools.partial(bytes, data))


def cut_samples(
    samples: Iterable[tuple[str, bytes, int]], shard_bytes: int
) -> Iterator[LoadedItems]:
    """(key, encoded image, label) triples in shards of at most `shard_bytes`, in order.

    Raises:
        UserError: a key twice, or with a dot.
    """
    seen: set[str] = set()
    held: list[tuple[str, bytes, int]] = []
    num_bytes = 0
    for key, data, label in samples:
        if not key or "." in key.rpartition("/")[2]:
            raise UserError(f"key {key!r} cannot be packed; use a name without dots")
        if key in seen:
            raise UserError(f"key {key!r} was given twice; make the keys unique")
        seen.add(key)
        if held and num_bytes + len(data) > shard_bytes:
            yield LoadedItems(held)
            held, num_bytes = [], 0
        held.append((key, data, label))
        num_bytes += len(data)
    if held:
        yield LoadedItems(held)
