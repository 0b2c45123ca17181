"""A folder of images to WebDataset shards with an index, a manifest and a fixed byte layout.

The same images and options give the same bytes, whatever the machine, the number of threads and
the number of times it was interrupted: names are sorted and shuffled by hash, tar headers carry no
time and no user, and shards are cut by payload bytes. Every image is decoded completely first; one
that fails is left out, counted and named in quarantine.jsonl.

Order of publication: a shard, its index, the next shard, ..., quarantine.jsonl, manifest.arrow,
manifest.json. A shard's index remembers what it was made from and where the next shard starts, so
a second run continues behind the last complete one.
"""

import hashlib
import itertools
import json
import logging
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipelines.errors import UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.images.budget import BadSample, ErrorBudget
from data_pipelines.images.folder import SourceFile, list_images
from data_pipelines.images.pixels import MAX_PIXELS, BadImage, ImageFacts, validate_image
from data_pipelines.images.tar import file_sha256, scan_tar
from data_pipelines.images.workers import default_threads, ordered_map
from data_pipelines.manifest import (
    MANIFEST_JSON,
    IndexRow,
    ShardEntry,
    ShardManifest,
    content_digest,
    decode_index,
    encode_index,
    publish_manifest,
    read_manifest_json,
)
from data_pipelines.storage import Storage, open_storage, scratch_file

logger = logging.getLogger(__name__)

PACK_VERSION = 1
DEFAULT_SHARD_BYTES = 256 << 20
DEFAULT_MAX_BAD_SAMPLES = 10
QUARANTINE_FILE = "quarantine.jsonl"
_TAR_OWNER = "ifsq"

Progress = Callable[[int, int | None], None]
"""Called with (images done, images in all or None if unknown)."""


@dataclass(frozen=True)
class PackItem:
    """An image to pack: `label` -1 means none, `extension` names the tar member."""

    key: str
    label: int
    extension: str
    origin: str
    """What messages call it."""
    load: Callable[[], bytes]


@dataclass(frozen=True)
class PackOptions:
    """Options common to all sources; `fingerprint` names source and options (None: unknown)."""

    shard_bytes: int
    max_bad_samples: int
    max_pixels: int
    threads: int
    fingerprint: str | None
    num_items: int | None = None
    on_progress: Progress | None = None


@dataclass(frozen=True)
class _Checked:
    item: PackItem
    data: bytes
    facts: ImageFacts | None
    reason: str


def pack_folder(
    source: Path,
    target_url: str | Path,
    *,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    seed: int | None = 0,
    max_bad_samples: int = DEFAULT_MAX_BAD_SAMPLES,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    keep: Callable[[str], bool] | None = None,
    on_progress: Progress | None = None,
) -> ShardManifest:
    """Pack a folder of class folders (labels are the sorted folders' numbers) or of images.

    Args:
        source: `source/<class>/.../image.jpg`, or images directly in `source` (no labels).
        target_url: folder or s3:// prefix of the new dataset.
        shard_bytes: image bytes per shard; a larger image gets a shard of its own.
        seed: shuffles all images once; None keeps the sorted order (classes then come in blocks).
        max_bad_samples: images that may fail to decode; they are left out and listed.
        max_pixels: larger images count as bad.
        keep: which images to take, by their path below `source`; all if left out. Labels are
            those of the whole folder, so that parts of it agree.

    Returns:
        The finished dataset; an identical one that exists is returned untouched.

    Raises:
        UserError: no such folder, no images in it, or another dataset at the target.
        DataError: more bad images than allowed.
    """
    files, classes = list_images(source)
    if keep is not None:
        files = [file for file in files if keep(file.relative)]
    if seed is not None:
        order = np.argsort(hash_u64(seed, np.arange(len(files))), kind="stable")
        files = [files[i] for i in order]
    fingerprint = _fingerprint(files, {"shard_bytes": shard_bytes, "max_pixels": max_pixels})
    options = PackOptions(
        shard_bytes, max_bad_samples, max_pixels, threads or default_threads(), fingerprint,
        len(files), on_progress,
    )  # fmt: skip
    return _pack(_folder_items(files), open_storage(target_url), classes, options)


def pack_samples(
    samples: Iterable[tuple[str, bytes, int]],
    target_url: str | Path,
    *,
    classes: Sequence[str] = (),
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    max_bad_samples: int = 0,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    fingerprint: str | None = None,
    on_progress: Progress | None = None,
) -> ShardManifest:
    """Pack (key, encoded image, label) triples in the order given; label -1 means none.

    Args:
        samples: keys must be unique and free of dots in their last part.
        fingerprint: names the samples; with it, a second run finds a finished dataset or
            continues an interrupted one. Without it an interrupted one starts again.

    Raises:
        UserError: a key twice, no samples, or another dataset at the target.
        DataError: more bad images than allowed.
    """
    if fingerprint is not None:
        fingerprint = _digest([PACK_VERSION, fingerprint, shard_bytes, max_pixels])
    options = PackOptions(
        shard_bytes, max_bad_samples, max_pixels, threads or default_threads(), fingerprint,
        None, on_progress,
    )  # fmt: skip
    items = _unique(_sample_item(*sample) for sample in samples)
    return _pack(items, open_storage(target_url), classes, options)


def _pack(
    items: Iterable[PackItem], storage: Storage, classes: Sequence[str], options: PackOptions
) -> ShardManifest:
    if storage.exists(MANIFEST_JSON):
        return _existing(storage, options.fingerprint)
    budget = ErrorBudget(options.max_bad_samples)
    shards, cursor = _finished_shards(storage, options, budget)
    if shards:
        logger.info("continuing %s behind %d finished shards", storage.url, len(shards))
    todo = itertools.islice(items, cursor, None)
    checked = ordered_map(lambda item: _check(item, options.max_pixels), todo, options.threads)
    try:
        for shard in _write_shards(checked, storage, options, budget, len(shards), cursor):
            shards.append(shard)
    finally:
        _write_quarantine(storage, budget)
    if not shards:
        raise UserError(f"nothing was packed into {storage.url}: there were no usable images")
    _delete_leftovers(storage, shards)
    storage.delete_stale_temporaries()
    extra = {"fingerprint": options.fingerprint, "num_bad_samples": budget.num_bad}
    publish_manifest(storage, shards, classes=classes, extra=extra)
    return ShardManifest.open(storage)


def _existing(storage: Storage, fingerprint: str | None) -> ShardManifest:
    found = read_manifest_json(storage)
    if fingerprint is None or found.get("fingerprint") != fingerprint:
        raise UserError(
            f"{storage.url} already holds another dataset ({found.get('num_samples')} samples, "
            f"digest {str(found.get('digest'))[:12]}); choose another target or delete it first"
        )
    logger.info("%s is already packed from the same source; nothing to do", storage.url)
    return ShardManifest.open(storage)


def _write_shards(
    checked: Iterator[_Checked],
    storage: Storage,
    options: PackOptions,
    budget: ErrorBudget,
    number: int,
    cursor: int,
) -> Iterator[ShardEntry]:
    pending = next(checked, None)
    while pending is not None:
        first, good, bad, num_bytes = cursor, list[_Checked](), list[BadSample](), 0
        while pending is not None:
            if pending.facts is None:
                bad.append(BadSample("", pending.item.origin, -1, pending.reason))
                budget.record(bad[-1])
            elif good and num_bytes + len(pending.data) > options.shard_bytes:
                break
            else:
                good.append(pending)
                num_bytes += len(pending.data)
            cursor += 1
            if options.on_progress:
                options.on_progress(cursor, options.num_items)
            pending = next(checked, None)
        if good:
            made_from = {
                "fingerprint": options.fingerprint,
                "first_item": first,
                "next_item": cursor,
                "bad": [asdict(sample) for sample in bad],
            }
            yield _publish_shard(storage, number, good, made_from)
            number += 1


def _publish_shard(
    storage: Storage, number: int, samples: list[_Checked], made_from: dict[str, Any]
) -> ShardEntry:
    from webdataset.writer import TarWriter

    name, index_name = f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"
    with scratch_file(storage, name) as (file, path):
        # GNU format: long keys are allowed; no time, user or group of this machine.
        with TarWriter(
            file, user=_TAR_OWNER, group=_TAR_OWNER, mtime=0, encoder=False, format="GNU_FORMAT"
        ) as tar:
            for sample in samples:
                members: dict[str, Any] = {"__key__": sample.item.key}
                members[sample.item.extension] = sample.data
                if sample.item.label >= 0:
                    members["cls"] = str(sample.item.label).encode()
                tar.write(members)
        file.flush()
        places = {member.name: member for member in scan_tar(path, name)}
        num_bytes, sha256 = path.stat().st_size, file_sha256(path)
        storage.upload(name, path)
    rows = []
    for sample in samples:
        item, facts = sample.item, sample.facts
        assert facts is not None
        place = places[f"{item.key}.{item.extension}"]
        rows.append(
            IndexRow(
                item.key, place.offset, place.size, item.label, facts.height, facts.width,
                zlib.crc32(sample.data), facts.format,
            )
        )  # fmt: skip
    tar_facts = {"num_bytes": num_bytes, "sha256": sha256}
    index = encode_index(rows, {**made_from, "tar": tar_facts})
    storage.write(index_name, index)
    return ShardEntry(
        name, len(rows), num_bytes, sha256, index_name,
        hashlib.sha256(index).hexdigest(), content_digest(rows),
    )  # fmt: skip


def _finished_shards(
    storage: Storage, options: PackOptions, budget: ErrorBudget
) -> tuple[list[ShardEntry], int]:
    """Shards an interrupted run completed, and the item the next one starts with."""
    shards: list[ShardEntry] = []
    cursor = 0
    while options.fingerprint is not None:
        found = _finished_shard(storage, len(shards), options.fingerprint, cursor)
        if found is None:
            break
        entry, cursor, bad = found
        shards.append(entry)
        for sample in bad:
            budget.record(BadSample(**sample))
    return shards, cursor


def _finished_shard(
    storage: Storage, number: int, fingerprint: str, cursor: int
) -> tuple[ShardEntry, int, list[dict[str, Any]]] | None:
    name, index_name = f"shard-{number:06d}.tar", f"index/shard-{number:06d}.arrow"
    if not (storage.exists(index_name) and storage.exists(name)):
        return None
    data = storage.read(index_name)
    try:
        rows = decode_index(data)
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    made, tar = rows.metadata, rows.metadata.get("tar", {})
    if (made.get("fingerprint"), made.get("first_item")) != (fingerprint, cursor):
        return None
    if storage.size(name) != tar["num_bytes"]:
        return None
    index_rows = [IndexRow(**row) for row in rows.table.to_pylist()]
    entry = ShardEntry(
        name, len(rows), tar["num_bytes"], tar["sha256"], index_name,
        hashlib.sha256(data).hexdigest(), content_digest(index_rows),
    )  # fmt: skip
    return entry, made["next_item"], made["bad"]


def _check(item: PackItem, max_pixels: int) -> _Checked:
    try:
        data = item.load()
        return _Checked(item, data, validate_image(data, max_pixels), "")
    except (BadImage, OSError) as error:
        return _Checked(item, b"", None, str(error))


def _folder_items(files: Sequence[SourceFile]) -> Iterator[PackItem]:
    keys = _folder_keys([file.relative for file in files])
    for file, key in zip(files, keys, strict=True):
        extension = file.path.suffix.lower().lstrip(".")
        yield PackItem(key, file.label, extension, file.relative, file.path.read_bytes)


def _folder_keys(relatives: Sequence[str]) -> list[str]:
    """Unique keys: the path without extension; a dot would end a WebDataset key early."""
    keys = []
    for relative in relatives:
        folder, slash, base = relative.rpartition("/")
        keys.append(folder + slash + base.rpartition(".")[0].replace(".", "_"))
    counts = Counter(keys)
    return [
        key if counts[key] == 1 else f"{key}__{hashlib.sha256(relative.encode()).hexdigest()[:12]}"
        for key, relative in zip(keys, relatives, strict=True)
    ]


def _sample_item(key: str, data: bytes, label: int) -> PackItem:
    if not key or "." in key.rpartition("/")[2]:
        raise UserError(f"key {key!r} cannot be packed; use a name without dots")
    extension = "png" if data.startswith(b"\x89PNG") else "webp" if data[:4] == b"RIFF" else "jpg"
    return PackItem(key, label, extension, key, lambda: data)


def _unique(items: Iterable[PackItem]) -> Iterator[PackItem]:
    seen: set[str] = set()
    for item in items:
        if item.key in seen:
            raise UserError(f"key {item.key!r} was given twice; make the keys unique")
        seen.add(item.key)
        yield item


def _write_quarantine(storage: Storage, budget: ErrorBudget) -> None:
    if budget.bad_samples:
        lines = (json.dumps(asdict(bad)) + "\n" for bad in budget.bad_samples)
        storage.write(QUARANTINE_FILE, "".join(lines).encode())
        logger.warning(
            "%d bad images left out, see %s/%s", budget.num_bad, storage.url, QUARANTINE_FILE
        )


def _delete_leftovers(storage: Storage, shards: Sequence[ShardEntry]) -> None:
    """Shards of an earlier, different, unfinished run beyond our last."""
    ours = {shard.name for shard in shards} | {shard.index_name for shard in shards}
    for prefix in ("shard-", "index/shard-"):
        for path in storage.list(prefix):
            if path not in ours:
                storage.delete(path)


def _fingerprint(files: Sequence[SourceFile], options: dict[str, Any]) -> str:
    listing = ((file.relative, file.label, file.path.stat().st_size) for file in files)
    return _digest([PACK_VERSION, options, *listing])


def _digest(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
