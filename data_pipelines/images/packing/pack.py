"""Images to WebDataset shards with an index, a manifest and a fixed byte layout.

The same images and options give the same bytes, whatever the machine, the number of threads or
machines and the number of times it was interrupted: names are sorted and shuffled by hash, tar
headers carry no time and no user, and shards are cut by the sizes of the sources. Every image is
decoded completely first; one that fails is left out, counted and named in quarantine.jsonl.

A shard is made by `data_pipelines.images.shards.make_shard`, on its own; this module decides which
images go into which shard, has them made (here, or wherever `map_shards` sends them), and
publishes quarantine.jsonl, manifest.arrow and last manifest.json.
"""

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar, Unpack

import numpy as np

from data_pipelines.hashing import hash_u64
from data_pipelines.images.decoders.limits import BadImage
from data_pipelines.images.decoders.pixels import decode_rgb
from data_pipelines.images.packing.account import Account
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.folder import FolderItems, list_images
from data_pipelines.images.packing.formats import storable
from data_pipelines.images.packing.loaded import cut_samples
from data_pipelines.images.packing.options import PackArguments, PackOptions
from data_pipelines.images.packing.packing import Packing
from data_pipelines.images.packing.parquet import ParquetItems, RowRange, open_parquet
from data_pipelines.images.packing.parquet_files import ParquetColumns
from data_pipelines.images.packing.resize import shrink
from data_pipelines.images.packing.shards import (
    PackItem,
    PackItems,
    ShardWork,
    cut_shards,
)
from data_pipelines.manifest import (
    ShardManifest,
)
from data_pipelines.storage.open import open_storage

T = TypeVar("T")

PACK_VERSION = 3
_PROBED_IMAGES = 64


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
    files = _shuffled(files, chosen.seed)
    facts = ((file.relative, file.label, file.num_bytes) for file in files)
    fingerprint = _digest([PACK_VERSION, chosen.identity(), *facts])
    scale = _shrinking(FolderItems(files[:_PROBED_IMAGES]), chosen)
    sizes = (int(file.num_bytes * scale) for file in files)
    spans = cut_shards(sizes, chosen.shard_bytes)
    works = _numbered(FolderItems(files[span.start : span.stop]) for span in spans)
    packing = Packing(
        open_storage(target_url), listing.classes, chosen, fingerprint, len(files), account,
        {"bytes": sum(file.num_bytes for file in files)},
    )  # fmt: skip
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
    ranges = _shuffled(source.ranges, chosen.seed)
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
    account = Account("rows", sum(part.num_rows for part in ranges), numbering=numbering.how)
    about = {
        "columns": asdict(columns),
        "files": len(file_sizes),
        "bytes": sum(file_sizes.values()),
    }
    return Packing(
        open_storage(target_url), numbering.names, chosen, fingerprint, account.seen, account, about
    ).run(works)


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
    packing = Packing(open_storage(target_url), classes, chosen, fingerprint, None, account)
    return packing.run(works)


def _shuffled(items: Sequence[T], seed: int | None) -> list[T]:
    """By hash of their places; as they are without a seed."""
    if seed is None:
        return list(items)
    return [items[i] for i in np.argsort(hash_u64(seed, np.arange(len(items))), kind="stable")]


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
