"""One shard of a dataset being packed: a unit of work that any machine can do, and redo.

A shard's bytes are a pure function of its items and the options. It is published as a tar, then
its index; the index remembers what it was made from, so whoever is given the same work again finds
it done. Nothing here knows of other shards, which is why they can be made in any order, anywhere.
"""

import hashlib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from data_pipelines.bad_samples import BadSample
from data_pipelines.images.decoders.limits import MAX_PIXELS, BadImage
from data_pipelines.images.decoders.pixels import (
    ImageFacts,
    decode_rgb,
    read_facts,
    sniff_format,
    validate_image,
)
from data_pipelines.images.packing.formats import storable
from data_pipelines.images.packing.resize import ResizeSpec, shrink
from data_pipelines.images.packing.tar import file_sha256, scan_tar
from data_pipelines.manifest import (
    IndexRow,
    ShardEntry,
    content_digest,
    decode_index,
    encode_index,
)
from data_pipelines.prefetch import ordered_map
from data_pipelines.storage.open import Storage, open_storage, scratch_file

_TAR_OWNER = "ifsq"

W = TypeVar("W")
R = TypeVar("R")


@dataclass(frozen=True)
class PackItem:
    """An image to pack: `label` -1 means none, `extension` names the tar member."""

    key: str
    label: int
    extension: str
    origin: str
    """What messages call it."""
    load: Callable[[], bytes]


class PackItems(Protocol):
    """The images of one shard, in order; can be sent to another machine and read there."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[PackItem]: ...


@dataclass(frozen=True)
class ShardWork:
    """Shard `number` is to hold `items`, which are those from `first_item` of the whole source."""

    number: int
    first_item: int
    items: PackItems


@dataclass(frozen=True)
class ShardOptions:
    """Options common to all shards; `fingerprint` names source and options (None: unknown)."""

    fingerprint: str | None
    threads: int = 1
    max_pixels: int = MAX_PIXELS
    resize: ResizeSpec | None = None


@dataclass(frozen=True)
class ShardResult:
    """A published shard; `entry` is None where none of its images was usable."""

    number: int
    num_items: int
    entry: ShardEntry | None
    bad: list[BadSample] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)
    """Images of each class number; -1 is none."""


class MapShards(Protocol):
    """Applies a function to every work item, in this process or on a cluster.

    Results may come in any order. An exception of the function ends the iteration.
    """

    def __call__(self, function: Callable[[W], R], works: Iterable[W]) -> Iterator[R]: ...


def cut_shards(sizes: Iterable[int], shard_bytes: int) -> Iterator[range]:
    """Consecutive items of at most `shard_bytes` bytes together; a larger one stays alone."""
    first, last, num_bytes = 0, 0, 0
    for size in sizes:
        if last > first and num_bytes + size > shard_bytes:
            yield range(first, last)
            first, num_bytes = last, 0
        last, num_bytes = last + 1, num_bytes + size
    if last > first:
        yield range(first, last)


def make_shard(
    work: ShardWork,
    target_url: str,
    options: ShardOptions,
    on_item: Callable[[], None] | None = None,
) -> ShardResult:
    """Check every image of a shard and publish it, unless it is published already.

    Images that are no usable ones are left out and reported in the result.
    """
    storage = open_storage(target_url)
    finished = _finished(storage, work, options)
    if finished is not None:
        return finished
    return _publish(storage, work, options, on_item)


def shard_names(number: int) -> tuple[str, str]:
    """Paths of a shard's tar and of its index."""
    return f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"


@dataclass(frozen=True)
class _Checked:
    item: PackItem
    data: bytes
    facts: ImageFacts | None
    extension: str
    reason: str = ""


def _check(item: PackItem, options: ShardOptions) -> _Checked:
    try:
        loaded = item.load()
        data = storable(loaded, options.max_pixels)
        extension = item.extension if data is loaded else "png"
        if options.resize is None:
            return _Checked(item, data, validate_image(data, options.max_pixels), extension)
        small = shrink(decode_rgb(data, options.max_pixels), options.resize)
        if small is None:
            return _Checked(item, data, read_facts(data, options.max_pixels), extension)
        return _Checked(item, small, read_facts(small, options.max_pixels), "jpg")
    except (BadImage, OSError) as error:
        return _Checked(item, b"", None, item.extension, str(error))


def _publish(
    storage: Storage,
    work: ShardWork,
    options: ShardOptions,
    on_item: Callable[[], None] | None,
) -> ShardResult:
    name, index_name = shard_names(work.number)
    bad: list[BadSample] = []
    with scratch_file(storage, name) as (file, path):
        kept = _write_tar(file, work, options, bad, on_item)
        file.flush()
        places = {member.name: member for member in scan_tar(path, name)} if kept else {}
        tar_facts = {"num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        if kept:
            storage.upload(name, path)
    rows = []
    for member, key, label, facts, crc32 in kept:
        place = places[member]
        rows.append(
            IndexRow(
                key, place.offset, place.size, label, facts.height, facts.width, crc32,
                facts.format,
            )
        )  # fmt: skip
    made_from = _made_from(work, options) | {"bad": [asdict(b) for b in bad], "tar": tar_facts}
    index = encode_index(rows, made_from)
    storage.write(index_name, index)
    return _result(work, rows, index, tar_facts, bad)


def _write_tar(
    file: Any,
    work: ShardWork,
    options: ShardOptions,
    bad: list[BadSample],
    on_item: Callable[[], None] | None,
) -> list[tuple[str, str, int, ImageFacts, int]]:
    """Good images into the tar as they come; (member, key, label, facts, crc32) of each."""
    from webdataset.writer import TarWriter

    kept = []
    # GNU format: long keys are allowed; no time, user or group of this machine.
    with TarWriter(
        file, user=_TAR_OWNER, group=_TAR_OWNER, mtime=0, encoder=False, format="GNU_FORMAT"
    ) as tar:
        tar.tarstream.encoding = "utf-8"  # in every locale
        for checked in ordered_map(lambda i: _check(i, options), work.items, options.threads):
            item, facts = checked.item, checked.facts
            if facts is None:
                bad.append(BadSample("", item.origin, -1, checked.reason))
            else:
                members: dict[str, Any] = {"__key__": item.key, checked.extension: checked.data}
                if item.label >= 0:
                    members["cls"] = str(item.label).encode()
                tar.write(members)
                member = f"{item.key}.{checked.extension}"
                kept.append((member, item.key, item.label, facts, zlib.crc32(checked.data)))
            if on_item is not None:
                on_item()
    return kept


def _made_from(work: ShardWork, options: ShardOptions) -> dict[str, Any]:
    return {
        "fingerprint": options.fingerprint,
        "first_item": work.first_item,
        "next_item": work.first_item + len(work.items),
    }


def _result(
    work: ShardWork,
    rows: Sequence[IndexRow],
    index: bytes,
    tar_facts: dict[str, Any],
    bad: list[BadSample],
) -> ShardResult:
    name, index_name = shard_names(work.number)
    entry = None
    if rows:
        entry = ShardEntry(
            name, len(rows), tar_facts["num_bytes"], tar_facts["sha256"], index_name,
            hashlib.sha256(index).hexdigest(), content_digest(rows),
        )  # fmt: skip
    counts = Counter(row.label for row in rows)
    return ShardResult(work.number, len(work.items), entry, bad, counts)


def _finished(storage: Storage, work: ShardWork, options: ShardOptions) -> ShardResult | None:
    """The shard as somebody completed it earlier, or None."""
    name, index_name = shard_names(work.number)
    if options.fingerprint is None or not storage.exists(index_name):
        return None
    index = storage.read(index_name)
    try:
        rows = decode_index(index)
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    made, expected = rows.metadata, _made_from(work, options)
    if any(made.get(fact) != value for fact, value in expected.items()):
        return None
    tar_facts = made["tar"]
    if len(rows) and not (storage.exists(name) and storage.size(name) == tar_facts["num_bytes"]):
        return None
    index_rows = [IndexRow(**row) for row in rows.table.to_pylist()]
    bad = [BadSample(**sample) for sample in made["bad"]]
    return _result(work, index_rows, index, tar_facts, bad)


def extension_of(data: bytes) -> str:
    """What a tar member holding these bytes is called: jpg, png or webp."""
    try:
        return sniff_format(data).replace("jpeg", "jpg")
    except BadImage:
        return "jpg"


def delete_leftovers(storage: Storage, results: Sequence[ShardResult]) -> None:
    """Shards of an earlier, different, unfinished run beyond our last."""
    ours: set[str] = set()
    for result in results:
        name, index_name = shard_names(result.number)
        ours |= {name, index_name} if result.entry is not None else {index_name}
    for prefix in ("shard-", "index/shard-"):
        for path in storage.list(prefix):
            if path not in ours:
                storage.delete(path)
