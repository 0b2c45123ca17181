"""One tar to its index, in two steps: what it holds, then which numbers its labels have.

The first step decodes every image and keeps the labels as they were found; it needs no other tar.
The numbers follow from the labels of all tars, so they come second, from the index alone.
"""

import functools
import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from data_pipelines.bad_samples import BadTarSample
from data_pipelines.images.decoders.limits import MAX_PIXELS, BadImage
from data_pipelines.images.decoders.pixels import read_facts, validate_image
from data_pipelines.images.packing.account import kind_of_file, pass_over
from data_pipelines.images.packing.labels import (
    BadLabel,
    Label,
    Numbering,
    kept_label,
    label_of_array,
    label_of_json,
    label_of_text,
    text_of,
)
from data_pipelines.images.packing.samples import TarSample, group_samples, is_hidden, is_image
from data_pipelines.images.packing.tar import (
    TarMember,
    file_sha256,
    scan_tar,
    split_name,
)
from data_pipelines.manifest import (
    IndexRow,
    ShardEntry,
    content_digest,
    decode_index,
    encode_index,
)
from data_pipelines.prefetch import ordered_map
from data_pipelines.storage.open import LocalStorage, Storage, as_local_file, open_storage

logger = logging.getLogger(__name__)

INDEX_VERSION = 3
LABEL_FIELDS = ("label", "cls")
MAX_LABEL_BYTES = 1 << 20
_CONVERTIBLE = "; tars are read where they lie: unpack them, and `ifsq data pack` converts it"


@dataclass(frozen=True)
class IndexOptions:
    """How tars are read.

    Attributes:
        image_key: extension of the member that is the image; None finds it.
        label_key: extension of the member, or field of `.json`, that is the label; None finds it.
    """

    validate: bool = True
    max_pixels: int = MAX_PIXELS
    threads: int = 1
    image_key: str | None = None
    label_key: str | None = None

    def identity(self) -> list[Any]:
        """What decides what is found, besides the tar."""
        return [INDEX_VERSION, self.validate, self.max_pixels, self.image_key, self.label_key]


@dataclass(frozen=True)
class TarContents:
    """What a tar holds, without the images.

    Attributes:
        num_images: usable ones.
        labels, texts: how often each label comes; `texts` are those of `.txt`, perhaps captions.
        orphans: labels without an image, by key: they may belong to an image of a neighbour.
        passed_over: members that are neither image nor label, by reason.
        folders: first folders of the images without a label.
    """

    name: str
    num_members: int
    num_images: int
    bad: list[BadTarSample]
    labels: Counter[Label]
    texts: Counter[Label]
    orphans: dict[str, Label]
    passed_over: Counter[str]
    folders: frozenset[str]


@dataclass(frozen=True)
class TarIndexed:
    """An indexed tar, and how many of its images have which class number (-1: none)."""

    entry: ShardEntry
    bad: list[BadTarSample]
    counts: Counter[int]
    joined: int
    """Labels that came from a neighbour."""


@dataclass
class _Found:
    """Of one tar, while it is read."""

    rows: list[IndexRow] = field(default_factory=list)
    raw: list[Label] = field(default_factory=list)
    from_text: list[int] = field(default_factory=list)
    bad: list[BadTarSample] = field(default_factory=list)
    orphans: dict[str, Label] = field(default_factory=dict)
    lost_labels: list[Label] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    num_members: int = 0


def index_name_of(name: str) -> str:
    """Path of a tar's index."""
    return f"index/{name.removesuffix('.tar')}.arrow"


def read_tar(name: str, source_url: str, target_url: str, options: IndexOptions) -> TarContents:
    """Publish what a tar holds as its index without class numbers, unless it is there already.

    Raises:
        DataError: the tar is cut or damaged.
    """
    source, target = open_storage(source_url), open_storage(target_url)
    with as_local_file(source, name) as path:
        tar = {"name": name, "num_bytes": path.stat().st_size, "sha256": file_sha256(path)}
        made_from = {"options": options.identity(), "tar": tar}
        found = _kept(target, index_name_of(name), made_from)
        if found is None:
            found = _read(path, name, options)
            target.write(index_name_of(name), _encode(found, made_from))
    logger.info("%s: %d images", name, len(found.rows))
    texts = set(found.from_text)
    labels: Counter[Label] = Counter()
    for row, label in enumerate(found.raw):
        if label is not None and row not in texts:
            labels[label] += 1
    for label in found.lost_labels:
        labels[label] += 0
    return TarContents(
        name, found.num_members, len(found.rows), found.bad, labels,
        Counter(found.raw[row] for row in texts), found.orphans, found.passed_over,
        frozenset(
            row.key.lstrip("/").partition("/")[0]
            for row, label in zip(found.rows, found.raw, strict=True)
            if label is None and "/" in row.key.lstrip("/")
        ),
    )  # fmt: skip


def label_tar(
    name: str,
    target_url: str,
    numbering: Numbering,
    use_texts: bool,
    neighbours: Mapping[str, Label],
) -> TarIndexed:
    """Publish the index of a tar with class numbers; `neighbours` are labels by key."""
    target = open_storage(target_url)
    made = decode_index(target.read(index_name_of(name)))
    found = _decode(made)
    texts = set(found.from_text)
    rows, raw, bad, joined = list[IndexRow](), list[Label](), list(found.bad), 0
    for number, (row, label) in enumerate(zip(found.rows, found.raw, strict=True)):
        if number in texts and not use_texts:
            label = None
        if label is None and row.key in neighbours:
            label, joined = neighbours[row.key], joined + 1
        try:
            rows.append(replace(row, label=numbering.number(label)))
            raw.append(label)
        except BadLabel as error:
            bad.append(BadTarSample(name, row.key, -1, str(error)))
    facts = {key: value for key, value in made.metadata.items() if key not in ("raw", "from_text")}
    index = encode_index(rows, facts | {"bad": [asdict(b) for b in bad], "labels": numbering.how})
    # Where nothing is named, the numbers in the index say all; so does a rerun.
    target.write(index_name_of(name), index)
    tar = made.metadata["tar"]
    entry = ShardEntry(
        name, len(rows), tar["num_bytes"], tar["sha256"], index_name_of(name),
        hashlib.sha256(index).hexdigest(), content_digest(rows),
    )  # fmt: skip
    return TarIndexed(entry, bad, Counter(row.label for row in rows), joined)


def _encode(found: _Found, made_from: Mapping[str, Any]) -> bytes:
    facts = {
        **made_from,
        "bad": [asdict(bad) for bad in found.bad],
        "raw": found.raw,
        "from_text": found.from_text,
        "orphans": found.orphans,
        "lost_labels": found.lost_labels,
        "passed_over": found.passed_over,
        "num_members": found.num_members,
    }
    return encode_index(found.rows, facts)


def _decode(made: Any) -> _Found:
    facts = made.metadata
    return _Found(
        [IndexRow(**row) for row in made.table.to_pylist()], facts["raw"], facts["from_text"],
        [BadTarSample(**bad) for bad in facts["bad"]], facts["orphans"], facts["lost_labels"],
        Counter(facts["passed_over"]), facts["num_members"],
    )  # fmt: skip


def _kept(target: Storage, index_name: str, made_from: Mapping[str, Any]) -> _Found | None:
    """What an interrupted run found already; None if there is nothing, or it was numbered."""
    if not target.exists(index_name):
        return None
    try:
        made = decode_index(target.read(index_name))
        if any(made.metadata.get(name) != value for name, value in made_from.items()):
            return None
        return _decode(made)
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError):
        return None


def _read(path: Path, name: str, options: IndexOptions) -> _Found:
    members = scan_tar(path, name)
    found = _Found(num_members=len(members))
    for member in members:
        if is_hidden(member.name):
            found.passed_over["hidden or of the system (._x, .DS_Store, __MACOSX)"] += 1
        elif not split_name(member.name)[1]:
            pass_over(found.passed_over, kind_of_file(member.name))
    samples = list(group_samples(members))
    read = functools.partial(_read_sample, path, options)
    for sample, one in zip(samples, ordered_map(read, samples, options.threads), strict=True):
        _add(found, name, sample, one)
    return found


@dataclass(frozen=True)
class _One:
    """A sample, read: its row or why it has none, its label, and the members that were used."""

    row: IndexRow | None
    reason: str
    label: Label
    from_text: bool
    used: Sequence[TarMember]


def _add(found: _Found, name: str, sample: TarSample, one: _One) -> None:
    used = {member.offset for member in one.used}
    for extension, member in sample.members.items():
        if (one.row is not None or not is_image(extension)) and member.offset not in used:
            kind = "not the image of its sample" if is_image(extension) else "not a label"
            pass_over(found.passed_over, f".{extension[:40]} ({kind})")
    if one.row is not None:
        if one.from_text:
            found.from_text.append(len(found.rows))
        found.rows.append(one.row)
        found.raw.append(kept_label(one.label))
        return
    num_images = len(sample.images) + sum(is_image(name) for name in sample.repeated)
    found.bad.append(BadTarSample(name, sample.key, -1, one.reason, num_images))
    if one.label is not None and not one.from_text:
        if num_images:
            found.lost_labels.append(one.label)
        else:
            found.orphans[sample.key] = one.label


def _read_sample(path: Path, options: IndexOptions, sample: TarSample) -> _One:
    label, from_text, label_member, reason = None, False, None, ""
    try:
        label, label_member = _label(path, sample, options.label_key)
        from_text = (
            label_member is not None
            and label_member.name.lower().endswith(".txt")
            and options.label_key is None
        )
    except BadLabel as error:
        reason = str(error)
    image = sample.image(options.image_key)
    used = [member for member in (label_member,) if member is not None]
    if isinstance(image, str) or reason:
        return _One(None, reason or str(image), label, from_text, used)
    data = LocalStorage(path.parent).read_range(path.name, image.offset, image.size)
    check = validate_image if options.validate else read_facts
    try:
        facts = check(data, options.max_pixels)
    except BadImage as error:
        hint = _CONVERTIBLE if "image (it is a" in str(error) else ""
        return _One(None, f"{error}{hint}", label, from_text, used)
    row = IndexRow(
        sample.key, image.offset, image.size, -1, facts.height, facts.width, zlib.crc32(data),
        facts.format,
    )  # fmt: skip
    return _One(row, "", label, from_text, [image, *used])


def _label(path: Path, sample: TarSample, label_key: str | None) -> tuple[Label, TarMember | None]:
    """The label, and the member it is from."""
    for extension in (
        (label_key, "cls", "json", "txt") if label_key is None else (label_key, "json")
    ):
        found = sample.ending_in(extension) if extension else []
        if len(found) != 1:
            continue
        (member,) = found
        if extension == "txt" and label_key is None and not member.problem:
            size = min(member.size, MAX_LABEL_BYTES)
            return text_of(
                LocalStorage(path.parent).read_range(path.name, member.offset, size)
            ), member
        if member.problem or member.size > MAX_LABEL_BYTES:
            raise BadLabel(member.problem or f"its .{extension} of {member.size} bytes is no label")
        data = LocalStorage(path.parent).read_range(path.name, member.offset, member.size)
        if extension == "npy":
            return label_of_array(data), member
        if extension != "json":
            return label_of_text(data), member
        label = label_of_json(data, LABEL_FIELDS if label_key is None else (label_key,))
        if label is not None:
            return label, member
    return None, None
