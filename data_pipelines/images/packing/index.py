"""Manifest and indices for WebDataset tars that exist already; the tars are never touched.

Every image is decoded once, so that training meets no surprise; `validate=False` reads headers
only. Which member of a sample is its image, and which its label, is in `samples` and `tar_index`;
what labels may say, and how they become numbers, in `labels`.

An interrupted run continues: what was found in a tar that still has the recorded hash is kept.
"""

import functools
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.differences import as_text, changed_keys
from data_pipelines.errors import UserError
from data_pipelines.images.decoders.limits import MAX_PIXELS
from data_pipelines.images.packing.account import Account, kind_of_file, pass_over
from data_pipelines.images.packing.classes import ClassMap, class_map_of
from data_pipelines.images.packing.labels import (
    Label,
    Numbering,
    are_captions,
    number_labels,
)
from data_pipelines.images.packing.places import is_compressed_tar, name_format
from data_pipelines.images.packing.samples import is_hidden
from data_pipelines.images.packing.shards import MapShards, R, W
from data_pipelines.images.packing.tar import file_sha256
from data_pipelines.images.packing.tar_index import (
    IndexOptions,
    TarContents,
    TarIndexed,
    label_tar,
    read_tar,
)
from data_pipelines.manifest import (
    MANIFEST_JSON,
    ShardManifest,
    publish_manifest,
)
from data_pipelines.storage.open import Storage, as_local_file, open_storage
from data_pipelines.storage.outputs import Writer, claim
from data_pipelines.threads import default_threads

logger = logging.getLogger(__name__)

_OWN_FILES = ("manifest.json", "manifest.arrow", "quarantine.jsonl")
INDEXED_FILES = ("index/*", *_OWN_FILES)


def _indexed_before(storage: Storage) -> bool:
    """Whether a folder without a marker was indexed, or begun, by an earlier release."""
    names = [name for name in storage.list() if not name.startswith(".")]
    own = all(any(fnmatchcase(name, pattern) for pattern in INDEXED_FILES) for name in names)
    return own and any(name.startswith("index/") for name in names)


INDEXER = Writer("ifsq data index", INDEXED_FILES, _indexed_before, result="dataset")


def index_tars(
    source_url: str | Path,
    target_url: str | Path | None = None,
    *,
    classes: Sequence[str] = (),
    class_map: ClassMap | None = None,
    num_classes: int | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    max_bad_samples: int = 0,
    max_pixels: int = MAX_PIXELS,
    threads: int | None = None,
    validate: bool = True,
    map_shards: MapShards | None = None,
    overwrite: bool = False,
) -> ShardManifest:
    """Make a dataset of all `*.tar` below `source_url`, in order of their names.

    Args:
        target_url: where manifest and indices go; None puts them beside the tars.
        classes: class names in label order; found from the data where left out.
        class_map: numbers of the labels' names, instead of `classes`.
        num_classes: integer labels are smaller than this; found from the data where left out.
        image_key: extension of the image among several, such as `left.png`.
        label_key: extension of the member, or field of `.json`, that is the label.
        max_bad_samples: images that may be lost, or be without a label where others have one.
        validate: decode every image completely; False trusts everything behind its header.
        map_shards: where tars are indexed; None does one after the other in this process.
        overwrite: remove an earlier index from `target_url`.

    Raises:
        UserError: no tars, labels of two kinds or out of range, or another dataset at the target.
        DataError: a cut or damaged tar, or too many images lost; names them.
    """
    source = open_storage(source_url)
    target = source if target_url is None else open_storage(target_url)
    names, account = _tar_names(source)
    if target.url != source.url:
        claim(target, INDEXER, {"tars": source.url, "validate": validate}, overwrite=overwrite)
    class_map = class_map or (class_map_of(classes) if classes else None)
    settings = _settings(class_map, num_classes, image_key, label_key)
    if target.exists(MANIFEST_JSON):
        return _existing(source, target, names, settings)
    threads = threads or (1 if map_shards else default_threads())
    options = IndexOptions(validate, max_pixels, threads, image_key, label_key)
    apply: MapShards = map_shards or _one_by_one
    read = functools.partial(
        read_tar, source_url=source.url, target_url=target.url, options=options
    )
    contents = _read_all(apply(read, names), source, target, ErrorBudget(max_bad_samples))
    numbering, use_texts = _numbering(source, contents, class_map, num_classes, account)
    indexed = _label_all(target, contents, numbering, use_texts, apply)
    _finish_account(account, contents, indexed, numbering)
    account.check(max_bad_samples, source.url)
    publish_manifest(
        target, [result.entry for result in indexed], classes=numbering.names,
        shards_url=None if source.url == target.url else source.url,
        extra={"fingerprint": None, "settings": settings, **account.facts()},
    )  # fmt: skip
    return ShardManifest.open(target)


def _read_all(
    results: Iterable[TarContents], source: Storage, target: Storage, budget: ErrorBudget
) -> list[TarContents]:
    """What the tars hold, by their names; lost images are written down whatever happens."""
    contents: list[TarContents] = []
    try:
        for found in results:
            contents.append(found)
            for bad in found.bad:
                budget.record(bad)
    finally:
        _write_quarantine(target, [bad for found in contents for bad in found.bad])
    _refuse_nothing(source, contents)
    return sorted(contents, key=lambda found: found.name)


def _one_by_one(function: Callable[[W], R], works: Iterable[W]) -> Iterator[R]:
    yield from map(function, works)


def _tar_names(source: Storage) -> tuple[list[str], Account]:
    """The tars, and an account that knows what lies beside them."""
    folder = source.local_path("")
    if folder is not None and not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"{source.url} {what}; give the folder the .tar files are in")
    account = Account("members")
    paths = source.list()
    names = [path for path in paths if path.lower().endswith(".tar") and not is_hidden(path)]
    packed = [path for path in paths if is_compressed_tar(path) and not is_hidden(path)]
    if packed:
        raise UserError(
            f"{source.url} holds {len(packed)} compressed tars (such as {packed[0]}), whose samples"
            " cannot be read in place; decompress them (gunzip, unzstd, unxz), or move them away"
        )
    if not names:
        hint = name_format(paths) or "give the folder the shards are in"
        raise UserError(f"{source.url} holds no .tar files; {hint}")
    others = Counter(
        "hidden" if is_hidden(path) else kind_of_file(path)
        for path in set(paths) - set(names)
        if path not in _OWN_FILES and not path.startswith("index/")
    )
    if others:
        listed = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
        account.notes.append(f"files beside the tars were not read: {listed}")
    return names, account


def _refuse_nothing(source: Storage, contents: Sequence[TarContents]) -> None:
    if not any(found.num_images for found in contents):
        lost = [bad for found in contents for bad in found.bad]
        lost.sort(key=lambda bad: not bad.num_images)
        passed = sum((found.passed_over for found in contents), Counter[str]())
        members = sum(found.num_members for found in contents)
        reason = f"they have {members} members" + "".join(
            f", {count} {kind}" for kind, count in passed.most_common(3)
        )
        if lost:
            reason = f"{lost[0].key}: {lost[0].reason}"
        raise UserError(
            f"the tars of {source.url} hold no usable image: {reason}; give tars of images, or"
            " --image-key with the extension that the images have"
        )


def _numbering(
    source: Storage,
    contents: Sequence[TarContents],
    class_map: ClassMap | None,
    num_classes: int | None,
    account: Account,
) -> tuple[Numbering, bool]:
    """Numbers of all labels, and whether `.txt` members are labels."""
    labels: Counter[Label] = Counter()
    texts: Counter[Label] = Counter()
    for found in contents:
        for label, count in found.labels.items():
            labels[label] += count
        for label in found.orphans.values():
            labels[label] += 0
        texts.update(found.texts)
    use_texts = not (are_captions(texts) and class_map is None)
    if not use_texts:
        account.notes.append(
            f".txt members hold {len(texts)} different texts for {sum(texts.values())} images, so"
            " they are captions, not labels; --label-key txt takes them as labels"
        )
    else:
        labels.update(texts)
    return number_labels(labels, source.url, class_map, num_classes), use_texts


def _label_all(
    target: Storage,
    contents: Sequence[TarContents],
    numbering: Numbering,
    use_texts: bool,
    apply: MapShards,
) -> list[TarIndexed]:
    """Indices with class numbers; a label cut off by the end of a tar is looked for next door."""
    neighbours: dict[str, Mapping[str, Label]] = {}
    for at, found in enumerate(contents):
        near = [*contents[max(at - 1, 0) : at], *contents[at : at + 2]]
        neighbours[found.name] = {
            key: label for other in near for key, label in other.orphans.items()
        }
    label = functools.partial(
        _label_one, target_url=target.url, numbering=numbering, use_texts=use_texts
    )
    works = [(found.name, neighbours[found.name]) for found in contents]
    indexed = sorted(apply(label, works), key=lambda result: result.entry.name)
    _write_quarantine(target, [bad for result in indexed for bad in result.bad])
    return indexed


def _label_one(
    work: tuple[str, Mapping[str, Label]], target_url: str, numbering: Numbering, use_texts: bool
) -> TarIndexed:
    name, neighbours = work
    return label_tar(name, target_url, numbering, use_texts, neighbours)


def _finish_account(
    account: Account,
    contents: Sequence[TarContents],
    indexed: Sequence[TarIndexed],
    numbering: Numbering,
) -> None:
    counts: Counter[int] = Counter()
    for found, result in zip(contents, indexed, strict=True):
        account.seen += found.num_members
        account.taken += result.entry.num_samples
        for kind, count in found.passed_over.items():
            pass_over(account.passed_over, kind, count)
        account.lose(result.bad)
        counts.update(result.counts)
        account.labels_without_image += len(found.orphans)
    joined = sum(result.joined for result in indexed)
    account.labels_without_image = max(0, account.labels_without_image - joined)
    account.count_classes(counts, len(numbering.names))
    account.numbering = numbering.how
    folders = frozenset[str]().union(*(found.folders for found in contents))
    if account.unlabelled == account.taken and len(folders) > 1:
        account.notes.append(
            f"the images lie in {len(folders)} folders inside the tars (such as {min(folders)!r}):"
            " if these are classes, unpack the tars and use `ifsq data pack`"
        )
    unused = {kind: count for kind, count in account.passed_over.items() if "not a label" in kind}
    if account.unlabelled and unused:
        kinds = ", ".join(kind.split(" ")[0] for kind in unused)
        account.notes.append(
            f"images without a label have members {kinds}: if they hold labels, give --label-key"
            " with the extension or the field of .json"
        )


def _write_quarantine(target: Storage, bad: Sequence[BadSample]) -> None:
    if bad:
        ordered = sorted(bad, key=lambda sample: sample.shard)
        lines = (json.dumps(asdict(sample)) + "\n" for sample in ordered)
        target.write("quarantine.jsonl", "".join(lines).encode())


def _settings(
    class_map: ClassMap | None,
    num_classes: int | None,
    image_key: str | None,
    label_key: str | None,
) -> dict[str, Any]:
    """What decides images and labels besides the tars, as the manifest keeps it."""
    stored = None if class_map is None else json.dumps(class_map.to_dict(), sort_keys=True)
    return {
        "class_map": None if stored is None else hashlib.sha256(stored.encode()).hexdigest(),
        "num_classes": num_classes,
        "image_key": image_key,
        "label_key": label_key,
    }


def _existing(
    source: Storage, target: Storage, names: Sequence[str], settings: Mapping[str, Any]
) -> ShardManifest:
    """The index that is there, if it is of these tars and settings."""
    manifest = ShardManifest.open(target)
    differs = _other_tars(source, manifest, names)
    was = manifest.facts.get("settings", settings)
    if not differs and (changed := changed_keys(was, settings)):
        differs = "; ".join(as_text(changed))
    if not differs:
        logger.info("%s already indexes these tars; nothing to do", target.url)
        return manifest
    raise UserError(
        f"{target.url} already holds another dataset ({manifest.num_samples} samples, digest"
        f" {manifest.digest[:12]}): {differs}; choose another target, or delete its"
        f" {MANIFEST_JSON} and index/"
    )


def _other_tars(source: Storage, manifest: ShardManifest, names: Sequence[str]) -> str:
    """How the tars differ from those of an index; empty if they are the same."""
    if manifest.shards_storage.url != source.url:
        return f"its tars lie in {manifest.shards_storage.url}, not in {source.url}"
    shards = {shard.name: shard for shard in manifest.shards()}
    for name in [*names, *shards]:
        if name not in shards:
            return f"{name} is new ({len(shards)} tars then, {len(names)} now)"
        if name not in names:
            return f"{name} is gone ({len(shards)} tars then, {len(names)} now)"
    for name, shard in shards.items():
        with as_local_file(source, name) as path:
            if file_sha256(path) != shard.sha256:
                return f"{name} has other bytes than then"
    return ""
