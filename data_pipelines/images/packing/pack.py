"""Images to WebDataset shards with an index, a manifest and a fixed byte layout.

The same images and options give the same bytes, whatever the machine, the number of threads or
machines and the number of times it was interrupted: names are sorted and shuffled by hash, tar
headers carry no time and no user, and shards are cut by the sizes of the sources. Every image is
decoded completely first; one that fails is left out, counted and named in quarantine.jsonl.

A shard is made by `data_pipelines.images.shards.make_shard`, on its own; this module decides which
images go into which shard, has them made (here, or wherever `map_shards` sends them), and
publishes quarantine.jsonl, manifest.arrow and last manifest.json.
"""

import functools
import hashlib
import itertools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from data_pipelines.bad_samples import ErrorBudget
from data_pipelines.errors import UserError
from data_pipelines.hashing import hash_u64
from data_pipelines.images.decoders.limits import MAX_PIXELS, BadImage
from data_pipelines.images.decoders.pixels import decode_rgb
from data_pipelines.images.packing.account import Account
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.folder import FolderItems, list_images
from data_pipelines.images.packing.formats import storable
from data_pipelines.images.packing.loaded import cut_samples
from data_pipelines.images.packing.parquet import ParquetItems, RowRange, open_parquet
from data_pipelines.images.packing.parquet_files import ParquetColumns
from data_pipelines.images.packing.resize import ResizeSpec, shrink
from data_pipelines.images.packing.shards import (
    MapShards,
    PackItem,
    PackItems,
    ShardOptions,
    ShardResult,
    ShardWork,
    cut_shards,
    delete_leftovers,
    make_shard,
)
from data_pipelines.manifest import (
    MANIFEST_JSON,
    ShardManifest,
    publish_manifest,
    read_manifest_json,
)
from data_pipelines.storage.open import Storage, open_storage
from data_pipelines.storage.outputs import Writer, claim
from data_pipelines.threads import default_threads

logger = logging.getLogger(__name__)

PACK_VERSION = 3
DEFAULT_SHARD_BYTES = 256 << 20
DEFAULT_MAX_BAD_SAMPLES = 10
QUARANTINE_FILE = "quarantine.jsonl"
_PROBED_IMAGES = 64


def _packed_before(storage: Storage) -> bool:
    """Whether a folder without a marker was packed, or begun, by an earlier release."""
    names = [name for name in storage.list() if not name.startswith(".")]
    own = all(any(fnmatchcase(name, pattern) for pattern in PACKED_FILES) for name in names)
    return own and any(name.startswith("index/") for name in names)


PACKED_FILES = (
    "shard-[0-9][0-9][0-9][0-9][0-9][0-9].tar",
    "index/shard-[0-9][0-9][0-9][0-9][0-9][0-9].arrow",
    "manifest.json",
    "manifest.arrow",
    "quarantine.jsonl",
)
PACKER = Writer("ifsq data pack", PACKED_FILES, _packed_before, result="dataset")

Progress = Callable[[int, int | None], None]
"""Called with (images done, images in all or None if unknown)."""


@dataclass(frozen=True)
class PackOptions:
    """What all sources have in common.

    Attributes:
        shard_bytes: image bytes per shard, measured on the source (for resized images scaled by
            what a probe of the first images shrank to); a larger image gets its own shard.
        seed: shuffles all images once; None keeps the sorted order (classes then come in blocks).
        max_bad_samples: images that may fail to decode; they are left out and listed.
        max_pixels: larger images count as bad.
        resize: large images are stored smaller; None keeps every byte.
        threads: per shard being made; None takes the CPUs of this process, or 1 with `map_shards`.
        map_shards: where shards are made; None makes one after the other in this process.
        on_progress: called from this process.
        overwrite: remove what was packed into the target before.
    """

    shard_bytes: int = DEFAULT_SHARD_BYTES
    seed: int | None = 0
    max_bad_samples: int = DEFAULT_MAX_BAD_SAMPLES
    max_pixels: int = MAX_PIXELS
    resize: ResizeSpec | None = None
    threads: int | None = None
    map_shards: MapShards | None = None
    on_progress: Progress | None = None
    overwrite: bool = False

    def identity(self) -> dict[str, Any]:
        """The options that decide the bytes of a dataset."""
        resize = asdict(self.resize) if self.resize else None
        return {"shard_bytes": self.shard_bytes, "max_pixels": self.max_pixels, "resize": resize}


class PackArguments(TypedDict, total=False):
    """The fields of PackOptions as keyword arguments."""

    shard_bytes: int
    seed: int | None
    max_bad_samples: int
    max_pixels: int
    resize: ResizeSpec | None
    threads: int | None
    map_shards: MapShards | None
    on_progress: Progress | None
    overwrite: bool


def pack_folder(
    source: Path,
    target_url: str | Path,
    *,
    class_map: ClassMap | None = None,
    keep: Callable[[str], bool] | None = None,
    **options: Unpack[PackArguments],
) -> ShardManifest:
    """Pack a folder of class folders, or of images without labels.

    Args:
        source: `source/<class>/.../image.jpg`, or images directly in `source` (no labels).
        target_url: folder or s3:// prefix of the new dataset.
        class_map: numbers of the class folders; their sorted order if left out.
        keep: which images to take, by their path below `source`; all if left out. Labels are
            those of the whole folder, so that parts of it agree.
        options: see PackOptions.

    Returns:
        The finished dataset; an identical one that exists is returned untouched.

    Raises:
        UserError: no such folder, no images in it, or another dataset at the target.
        DataError: more bad images than allowed.
    """
    chosen = PackOptions(**options)
    listing = list_images(source.absolute(), class_map)
    files, account = listing.files, listing.account
    if keep is not None:
        files = [file for file in files if keep(file.relative)]
        account.seen -= len(listing.files) - len(files)
    if chosen.seed is not None:
        order = np.argsort(hash_u64(chosen.seed, np.arange(len(files))), kind="stable")
        files = [files[i] for i in order]
    facts = ((file.relative, file.label, file.num_bytes) for file in files)
    fingerprint = _digest([PACK_VERSION, chosen.identity(), *facts])
    scale = _shrinking(FolderItems(files[:_PROBED_IMAGES]), chosen)
    sizes = (int(file.num_bytes * scale) for file in files)
    spans = cut_shards(sizes, chosen.shard_bytes)
    works = _numbered(FolderItems(files[span.start : span.stop]) for span in spans)
    packing = _Packing(
        open_storage(target_url), listing.classes, chosen, fingerprint, len(files), account
    )
    return packing.run(works)


def pack_parquet(
    source_url: str | Path,
    target_url: str | Path,
    *,
    columns: ParquetColumns | None = None,
    pattern: str = "*",
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
    **options: Unpack[PackArguments],
) -> ShardManifest:
    """Pack images stored in Parquet files; see `data_pipelines.images.packing.parquet`.

    Args:
        source_url: folder or s3:// prefix that holds the files.
        columns: names of the columns.
        pattern: which files, by their path below `source_url`.
        class_map: numbers of the labels' names; the stored numbers if left out, and the sorted
            order where labels are names.
        num_classes: integer labels are smaller than this; found from the data where left out.
        options: see PackOptions. `seed` shuffles row groups, and the rows of a shard.

    Raises:
        UserError: no such files or columns, a label the map does not have, or another dataset at
            the target.
        DataError: a damaged file, or more bad images than allowed.
    """
    chosen, columns = PackOptions(**options), columns or ParquetColumns()
    source = open_parquet(
        str(source_url), columns, pattern=pattern, shard_bytes=chosen.shard_bytes,
        class_map=class_map, num_classes=num_classes,
    )  # fmt: skip
    columns = source.columns
    ranges = list(source.ranges)
    if chosen.seed is not None:
        order = np.argsort(hash_u64(chosen.seed, np.arange(len(ranges))), kind="stable")
        ranges = [ranges[i] for i in order]
    numbering = source.classes.numbering
    facts = [
        asdict(columns), sorted(numbering.numbers.items()), list(numbering.names),
        [asdict(part) for part in ranges],
    ]  # fmt: skip
    # Ranges carry sizes, not contents; the files' own sizes make a changed file unlikely to pass.
    file_sizes = {path: source.storage.size(path) for path in source.files}
    fingerprint = _digest([PACK_VERSION, chosen.identity(), chosen.seed, facts, file_sizes])

    def items(parts: Sequence[RowRange]) -> ParquetItems:
        return ParquetItems(
            source.storage.url, columns, source.classes, tuple(parts), chosen.seed,
            source.is_download,
        )  # fmt: skip

    scale = _shrinking(itertools.islice(items(ranges[:1]), _PROBED_IMAGES), chosen)
    spans = cut_shards((int(part.num_bytes * scale) for part in ranges), chosen.shard_bytes)
    works = _numbered(items(ranges[span.start : span.stop]) for span in spans)
    num_rows = sum(part.num_rows for part in ranges)
    account = Account("rows", num_rows, numbering=numbering.how)
    packing = _Packing(
        open_storage(target_url), numbering.names, chosen, fingerprint, num_rows, account
    )
    return packing.run(works)


def pack_samples(
    samples: Iterable[tuple[str, bytes, int]],
    target_url: str | Path,
    *,
    classes: Sequence[str] = (),
    fingerprint: str | None = None,
    **options: Unpack[PackArguments],
) -> ShardManifest:
    """Pack (key, encoded image, label) triples in the order given; label -1 means none.

    Args:
        samples: keys must be unique and free of dots in their last part.
        classes: class names in label order.
        fingerprint: names the samples; with it, a second run finds a finished dataset or
            continues an interrupted one. Without it an interrupted one starts again.
        options: see PackOptions; no bad sample is allowed unless told, and `seed` has no effect.

    Raises:
        UserError: a key twice, no samples, or another dataset at the target.
        DataError: more bad images than allowed.
    """
    chosen = PackOptions(**{"max_bad_samples": 0, **options})
    if fingerprint is not None:
        fingerprint = _digest([PACK_VERSION, fingerprint, chosen.identity()])
    works = _numbered(cut_samples(samples, chosen.shard_bytes))
    account = Account("samples", numbering="as given")
    packing = _Packing(open_storage(target_url), classes, chosen, fingerprint, None, account)
    return packing.run(works)


class _Packing:
    """Has the shards made, keeps count, and publishes the dataset."""

    def __init__(
        self,
        storage: Storage,
        classes: Sequence[str],
        options: PackOptions,
        fingerprint: str | None,
        num_items: int | None,
        account: Account,
    ) -> None:
        self.storage, self.classes, self.options = storage, classes, options
        self.fingerprint, self.num_items = fingerprint, num_items
        self.account = account
        self._budget = ErrorBudget(options.max_bad_samples)
        self._results: list[ShardResult] = []
        self._num_done = 0

    def run(self, works: Iterable[ShardWork]) -> ShardManifest:
        """Make all shards and the manifest, or what is missing of them."""
        finished = self.storage.exists(MANIFEST_JSON)
        claim(
            self.storage,
            PACKER,
            self._job(),
            finished=finished,
            overwrite=self.options.overwrite,
        )
        if finished and not self.options.overwrite:
            return self._existing()
        if self.fingerprint is not None and (found := self.storage.list("index/shard-")):
            logger.info("continuing %s, which has %d shards", self.storage.url, len(found))
        try:
            for result in self._make(works):
                self._results.append(result)
                for bad in result.bad:
                    self._budget.record(bad)
        finally:
            self._write_quarantine()
        return self._publish()

    def _job(self) -> dict[str, Any]:
        """What decides the dataset, for the folder's marker."""
        options = {**self.options.identity(), "seed": self.options.seed}
        source = {"fingerprint": self.fingerprint, "images": self.num_items}
        return {"source": source, **options}

    def _make(self, works: Iterable[ShardWork]) -> Iterator[ShardResult]:
        options = self.options
        threads = options.threads or (1 if options.map_shards else default_threads())
        shard = ShardOptions(self.fingerprint, threads, options.max_pixels, options.resize)
        make = functools.partial(make_shard, target_url=self.storage.url, options=shard)
        if options.map_shards is None:
            for work in works:
                first = self._num_done
                yield make(work, on_item=self._one_done)
                self._show(first + len(work.items))
        else:
            for result in options.map_shards(make, works):
                yield result
                self._show(self._num_done + result.num_items)

    def _one_done(self) -> None:
        self._show(self._num_done + 1)

    def _show(self, num_done: int) -> None:
        if num_done != self._num_done and self.options.on_progress:
            self.options.on_progress(num_done, self.num_items)
        self._num_done = num_done

    def _publish(self) -> ShardManifest:
        results = sorted(self._results, key=lambda result: result.number)
        shards = [result.entry for result in results if result.entry is not None]
        if not shards:
            reason = next((f" ({b.key}: {b.reason})" for r in results for b in r.bad), "")
            raise UserError(
                f"nothing was packed into {self.storage.url}: there were no usable images{reason}"
            )
        self._finish_account(results)
        self.account.check(self.options.max_bad_samples, self.storage.url)
        delete_leftovers(self.storage, results)
        self.storage.delete_stale_temporaries()
        extra = {
            "fingerprint": self.fingerprint,
            "num_bad_samples": self._budget.num_bad,
            "account": self.account.to_dict(),
        }
        publish_manifest(self.storage, shards, classes=self.classes, extra=extra)
        return ShardManifest.open(self.storage)

    def _finish_account(self, results: Sequence[ShardResult]) -> None:
        account = self.account
        counts: Counter[int] = Counter()
        for result in results:
            account.lose(result.bad)
            counts.update(result.counts)
        account.taken = sum(counts.values())
        account.count_classes(counts, len(self.classes))
        passed_over = sum(account.passed_over.values())
        rest = account.seen - account.taken - account.num_lost - passed_over
        if account.unit == "rows" and rest > 0:
            account.passed_over["rows without an image that img2dataset did not get"] = rest
        account.seen = max(account.seen, account.taken + account.num_lost)

    def _existing(self) -> ShardManifest:
        found = read_manifest_json(self.storage)
        if self.fingerprint is None or found.get("fingerprint") != self.fingerprint:
            raise UserError(
                f"{self.storage.url} already holds another dataset ({found.get('num_samples')}"
                f" samples, digest {str(found.get('digest'))[:12]}); choose another target or"
                " delete it first"
            )
        logger.info("%s is packed from the same source already; nothing to do", self.storage.url)
        return ShardManifest.open(self.storage)

    def _write_quarantine(self) -> None:
        results = sorted(self._results, key=lambda result: result.number)
        bad = [sample for result in results for sample in result.bad]
        if bad:
            lines = (json.dumps(asdict(sample)) + "\n" for sample in bad)
            self.storage.write(QUARANTINE_FILE, "".join(lines).encode())
            logger.warning(
                "%d bad images left out, see %s/%s", len(bad), self.storage.url, QUARANTINE_FILE
            )


def _numbered(groups: Iterable[PackItems]) -> Iterator[ShardWork]:
    first = 0
    for number, items in enumerate(groups):
        yield ShardWork(number, first, items)
        first += len(items)


def _shrinking(items: Iterable[PackItem], options: PackOptions) -> float:
    """Stored bytes over source bytes, measured on some images; 1 without resizing."""
    if options.resize is None:
        return 1.0
    before, after = 0, 0
    for item in items:
        try:
            data = item.load()
            pixels = decode_rgb(storable(data, options.max_pixels), options.max_pixels)
            small = shrink(pixels, options.resize)
        except (BadImage, OSError):
            continue
        before, after = before + len(data), after + len(small if small is not None else data)
    return after / before if before else 1.0


def _digest(parts: Sequence[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
