"""Manifest and indices for WebDataset tars that exist already; the tars are never touched.

Every image is decoded once, so that training meets no surprise; `validate=False` reads headers
only. A sample's image is its one member that ends in `.jpg`, `.jpeg`, `.png` or `.webp`, such as
`key.jpg` or `key.input.jpg`. Labels come from a `.cls` member (an integer, -1 for none), from the
field `label` or `cls` of a `.json` member, or from a `.txt` member, in this order; names instead of
integers become classes.

An interrupted run continues: an index that was finished and whose tar still has the recorded hash
is kept.
"""

import functools
import hashlib
import json
import logging
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.errors import DataError, UserError
from data_pipelines.images.decoders.pixels import (
    ALLOWED_EXTENSIONS,
    MAX_PIXELS,
    BadImage,
    read_facts,
    validate_image,
)
from data_pipelines.images.packing.classes import ClassMap, class_map_of
from data_pipelines.images.packing.shards import MapShards
from data_pipelines.images.packing.tar import TarSample, file_sha256, group_samples, scan_tar
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
from data_pipelines.prefetch import ordered_map
from data_pipelines.storage.open import LocalStorage, Storage, as_local_file, open_storage
from data_pipelines.threads import default_threads

logger = logging.getLogger(__name__)

INDEX_VERSION = 2
MAX_CLASS_NAMES = 100_000
MAX_CLASSES = 1_000_000
_MAX_DIGITS = 20
_LABEL_EXTENSIONS = ("cls", "json", "txt")


def index_tars(
    source_url: str | Path,
    target_url: str | Path | None = None,
    *,
    classes: Sequence[str] = (),
    class_map: ClassMap | None = None,
    max_bad_samples: int = 0,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    validate: bool = True,
    map_shards: MapShards | None = None,
) -> ShardManifest:
    """Make a dataset of all `*.tar` below `source_url`, in order of their names.

    Args:
        target_url: where manifest and indices go; None puts them beside the tars.
        classes: class names in label order; found from the data where left out.
        class_map: numbers of the labels' names, instead of `classes`.
        max_bad_samples: samples without a usable image that are left out and listed.
        validate: decode every image completely; False trusts everything behind its header.
        map_shards: where tars are indexed; None does one after the other in this process.

    Raises:
        UserError: no tars, or another dataset at the target.
        DataError: a cut or damaged tar, or too many bad samples; names them.
    """
    source = open_storage(source_url)
    target = source if target_url is None else open_storage(target_url)
    names = _tar_names(source)
    if target.exists(MANIFEST_JSON):
        return _existing(source, target, names)
    if class_map is None:
        class_map = class_map_of(list(classes) or _find_classes(source, names))
    threads = threads or (1 if map_shards else default_threads())
    index = functools.partial(
        index_tar, source_url=source.url, target_url=target.url,
        options=IndexOptions(class_map, validate, max_pixels, threads),
    )  # fmt: skip
    budget, results = ErrorBudget(max_bad_samples), list[TarIndexed]()
    try:
        for result in (map_shards or map)(index, names):
            results.append(result)
            for bad in result.bad:
                budget.record(bad)
    finally:
        _write_quarantine(target, results)
    results.sort(key=lambda result: result.entry.name)
    if not any(result.entry.num_samples for result in results):
        reason = next((f": {bad.key}: {bad.reason}" for r in results for bad in r.bad), "")
        raise UserError(f"the tars of {source.url} hold no usable image{reason}")
    recorded = list(class_map.names)
    if not recorded:
        top = max(result.largest_label for result in results)
        recorded = [str(label) for label in range(top + 1)]
    shards_url = None if source.url == target.url else source.url
    extra = {"num_bad_samples": budget.num_bad, "fingerprint": None}
    shards = [result.entry for result in results]
    publish_manifest(target, shards, classes=recorded, shards_url=shards_url, extra=extra)
    return ShardManifest.open(target)


def _tar_names(source: Storage) -> list[str]:
    folder = source.local_path("")
    if folder is not None and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{source.url} {what}; give the folder the .tar files are in")
    names = [path for path in source.list() if path.endswith(".tar")]
    if not names:
        raise UserError(f"{source.url} holds no .tar files; give the folder the shards are in")
    return names


@dataclass(frozen=True)
class IndexOptions:
    """How tars are indexed; `classes` is empty where labels are integers already."""

    classes: ClassMap
    validate: bool
    max_pixels: int
    threads: int

    def identity(self) -> list[Any]:
        """What decides an index, besides the tar."""
        numbers = hashlib.sha256(json.dumps(dict(self.classes.numbers)).encode()).hexdigest()
        return [INDEX_VERSION, self.validate, self.max_pixels, numbers]


@dataclass(frozen=True)
class TarIndexed:
    """An indexed tar; `largest_label` is -1 where it has none."""

    entry: ShardEntry
    bad: list[BadSample]
    largest_label: int


def index_tar(name: str, source_url: str, target_url: str, options: IndexOptions) -> TarIndexed:
    """Publish the index of one tar, unless it is there already; needs no other tar.

    Raises:
        DataError: the tar is cut or damaged.
    """
    source, target = open_storage(source_url), open_storage(target_url)
    index_name = f"index/{name.removesuffix('.tar')}.arrow"
    with as_local_file(source, name) as path:
        num_bytes, sha256 = path.stat().st_size, file_sha256(path)
        made_from = {"options": options.identity(), "tar": {"name": name, "sha256": sha256}}
        kept = _finished(target, index_name, made_from)
        if kept is None:
            rows, bad = _read_rows(path, name, options)
            index = encode_index(rows, {**made_from, "bad": [asdict(b) for b in bad]})
            target.write(index_name, index)
        else:
            rows, bad, index = kept
    logger.info("%s: %d samples", name, len(rows))
    entry = ShardEntry(
        name, len(rows), num_bytes, sha256, index_name,
        hashlib.sha256(index).hexdigest(), content_digest(rows),
    )  # fmt: skip
    return TarIndexed(entry, bad, max([-1, *(row.label for row in rows)]))


def _finished(
    target: Storage, index_name: str, made_from: dict[str, Any]
) -> tuple[list[IndexRow], list[BadSample], bytes] | None:
    if not target.exists(index_name):
        return None
    data = target.read(index_name)
    try:
        rows = decode_index(data)
    except (pa.ArrowInvalid, KeyError, ValueError):
        return None
    if any(rows.metadata.get(name) != value for name, value in made_from.items()):
        return None
    try:
        bad = [BadSample(**sample) for sample in rows.metadata["bad"]]
    except (KeyError, TypeError):
        return None
    return [IndexRow(**row) for row in rows.table.to_pylist()], bad, data


def _read_rows(
    path: Path, name: str, options: IndexOptions
) -> tuple[list[IndexRow], list[BadSample]]:
    samples = list(group_samples(scan_tar(path, name)))
    rows: list[IndexRow] = []
    bad: list[BadSample] = []
    found = ordered_map(lambda s: _read_row(path, s, options), samples, options.threads)
    for sample, row in zip(samples, found, strict=True):
        if isinstance(row, IndexRow):
            rows.append(row)
        else:
            bad.append(BadSample(name, sample.key, -1, row))
    return rows, bad


def _read_row(path: Path, sample: TarSample, options: IndexOptions) -> IndexRow | str:
    """The sample's row, or why it has none."""
    images = [m for extension in ALLOWED_EXTENSIONS for m in sample.ending_in(extension)]
    if len(images) != 1:
        found = ", ".join(sorted(sample.members)) or "nothing"
        allowed = ", ".join(ALLOWED_EXTENSIONS)
        return f"{len(images)} image members in {found}, expected one of {allowed}"
    if sample.repeated:
        return f"member .{sample.repeated[0]} comes more than once"
    storage, (image,) = LocalStorage(path.parent), images
    data = storage.read_range(path.name, image.offset, image.size)
    check = validate_image if options.validate else read_facts
    try:
        facts = check(data, options.max_pixels)
        label = _label_number(options.classes, _label_text(path, sample))
    except BadImage as error:
        return str(error)
    return IndexRow(
        sample.key, image.offset, image.size, label, facts.height, facts.width,
        zlib.crc32(data), facts.format,
    )  # fmt: skip


def _label_number(classes: ClassMap, text: str | None) -> int:
    if text is None:
        return -1
    if text in classes.numbers:
        return classes.numbers[text]
    if not _is_integer(text):
        raise BadImage(f"label {text[:40]!r} is neither a class name nor an integer")
    number = int(text)
    if not -1 <= number < MAX_CLASSES:
        raise BadImage(f"label {number} is outside -1 (none) to {MAX_CLASSES - 1}")
    return number


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and text.isascii() and len(text) < _MAX_DIGITS


def _write_quarantine(target: Storage, results: Sequence[TarIndexed]) -> None:
    ordered = sorted(results, key=lambda result: result.entry.name)
    bad = [sample for result in ordered for sample in result.bad]
    if bad:
        lines = (json.dumps(asdict(sample)) + "\n" for sample in bad)
        target.write("quarantine.jsonl", "".join(lines).encode())


def _existing(source: Storage, target: Storage, names: Sequence[str]) -> ShardManifest:
    manifest = ShardManifest.open(target)
    shards = manifest.shards()
    same_place = manifest.shards_storage.url == source.url
    if same_place and [shard.name for shard in shards] == list(names):
        for shard in shards:
            with as_local_file(source, shard.name) as path:
                if file_sha256(path) != shard.sha256:
                    break
        else:
            logger.info("%s already indexes these tars; nothing to do", target.url)
            return manifest
    found = read_manifest_json(target)
    raise UserError(
        f"{target.url} already holds another dataset ({found['num_samples']} samples, digest "
        f"{found['digest'][:12]}); choose another target, or delete its {MANIFEST_JSON} and index/"
    )


def _find_classes(source: Storage, names: Sequence[str]) -> list[str]:
    """Sorted class names where labels are names; empty where they are integers or absent."""
    found: set[str] = set()
    for name in names:
        with as_local_file(source, name) as path:
            for sample in group_samples(scan_tar(path, name)):
                try:
                    text = _label_text(path, sample)
                except BadImage:
                    continue  # met again, and counted, when the sample is indexed
                if text is not None and not _is_integer(text):
                    found.add(text)
                elif not found:
                    # One look at the first sample decides; mixed labels surface as bad samples.
                    return []
                if len(found) > MAX_CLASS_NAMES:
                    raise DataError(
                        f"{name} has more than {MAX_CLASS_NAMES} different text labels, as "
                        "captions would be; add .cls members with integers"
                    )
    return sorted(found)


def _label_text(path: Path, sample: TarSample) -> str | None:
    for extension in _LABEL_EXTENSIONS:
        members = sample.ending_in(extension)
        if len(members) != 1:
            continue
        (member,) = members
        data = LocalStorage(path.parent).read_range(path.name, member.offset, member.size)
        try:
            text = data.decode().strip()
            if extension != "json":
                return text
            fields = json.loads(text)
        except ValueError:
            raise BadImage(f"unreadable .{extension} label") from None
        label = fields.get("label", fields.get("cls")) if isinstance(fields, dict) else None
        return None if label is None else str(label)
    return None
