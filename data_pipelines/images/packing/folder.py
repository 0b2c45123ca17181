"""Images of a folder on this machine, in a fixed order, with labels from class folders."""

import functools
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.images.packing.account import Account, kind_of_file, pass_over
from data_pipelines.images.packing.classes import ClassMap, class_map_of
from data_pipelines.images.packing.formats import IMAGE_EXTENSIONS
from data_pipelines.images.packing.labels import Numbering, number_names
from data_pipelines.images.packing.places import name_format, refuse_file
from data_pipelines.images.packing.samples import is_hidden
from data_pipelines.images.packing.shards import PackItem
from data_pipelines.storage.local import walk_following_links

SPLIT_NAMES = frozenset(
    ("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval")
)
_SPLIT = re.compile(
    r"(?:.*[-_. ])?(train|training|val|valid|validation|test|testing|dev|eval)"
    r"[-_. ]?(?:set|images?|imgs?|data|split|[0-9]+)?"
)
_SYSTEM_FILES = frozenset(("thumbs.db", "desktop.ini", "icon\r"))
_DOWNLOAD_FOLDER = re.compile(r"\d{4,}")


@dataclass(frozen=True)
class SourceFile:
    """An image file below a source folder.

    Attributes:
        relative: its path below the source, with forward slashes.
        key: what the sample will be called; unique.
        label: class number, -1 where there is none.
        num_bytes: size of the file.
    """

    path: Path
    relative: str
    key: str
    label: int
    num_bytes: int


@dataclass(frozen=True)
class FolderItems:
    """Some of a folder's images, as the items of a shard."""

    files: Sequence[SourceFile]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[PackItem]:
        for file in self.files:
            extension = file.path.suffix.lower().lstrip(".")
            yield PackItem(file.key, file.label, extension, file.relative, file.path.read_bytes)


@dataclass(frozen=True)
class FolderListing:
    """All images of a folder, sorted by path, the class names, and what else is there."""

    files: list[SourceFile]
    classes: list[str]
    account: Account


@dataclass
class _Found:
    """Relative path to (path, size) of images; folders directly in the source with images, with
    other files only, and without any; what was passed over."""

    images: dict[str, tuple[Path, int]] = field(default_factory=dict)
    folders: dict[str, bool | None] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)


def list_images(source: Path, class_map: ClassMap | None = None) -> FolderListing:
    """All images below `source`, links followed.

    The folders directly in `source` are the classes, also one without a usable image, so that no
    other class gets its number; one that holds only other files is none. They are numbered by
    `class_map`, as they are where they are called 0 to n-1, or in sorted order. Images directly in
    `source`, and those in the numbered folders of img2dataset, have no labels.

    Raises:
        UserError: no such folder, no images, several splits, images both directly in it and in
            class folders, a class folder that the map does not have, or a name that is not UTF-8.
    """
    refuse_file(source, "a folder of class folders with images")
    found = _look(source)
    if not found.images:
        hint = name_format(found.others)
        raise UserError(
            f"{source} holds no images"
            + (f"; {hint}" if hint else "; allowed are .jpg, .png, .webp and others that Pillow"
               " reads, in class folders or directly in it")
        )  # fmt: skip
    account = Account("files", passed_over=found.passed_over)
    account.seen = len(found.images) + sum(found.passed_over.values())
    folders = sorted(name for name, holds in found.folders.items() if holds is not False)
    _refuse_splits(source, found)
    flat = [path for path in found.images if "/" not in path]
    if flat and len(flat) < len(found.images):
        raise UserError(
            f"{source} holds images both directly ({flat[0]}) and in folders; "
            "move them all into class folders, or all out of them"
        )
    if not flat and class_map is None and _is_download(folders, found):
        account.notes.append("folders made by img2dataset are no classes: images have no labels")
        folders = []
    labels: dict[str, int] = {}
    names: list[str] = []
    if folders and not flat:
        numbering = _number_folders(folders, source, class_map)
        labels = {folder: numbering.numbers[folder] for folder in folders}
        names, account.numbering = list(numbering.names), numbering.how
    images = sorted(found.images.items())
    files = [
        SourceFile(path, relative, key, labels.get(relative.partition("/")[0], -1), num_bytes)
        for (relative, (path, num_bytes)), key in zip(
            images, _keys([relative for relative, _ in images]), strict=True
        )
    ]
    return FolderListing(files, names, account)


def _number_folders(folders: Sequence[str], source: Path, class_map: ClassMap | None) -> Numbering:
    if class_map is not None:
        numbers = {folder: class_map.number(folder) for folder in folders}
        return Numbering(numbers, tuple(class_map.names), "by the class map")
    if {str(number) for number in range(len(folders))} == set(folders):
        classes = class_map_of([str(number) for number in range(len(folders))])
        return Numbering(classes.numbers, tuple(classes.names), "numbers as they are")
    return number_names(folders, str(source))


def _refuse_splits(source: Path, found: _Found) -> None:
    with_images = {path.partition("/")[0] for path in found.images if "/" in path}
    kinds = {
        name: match[1].startswith("train")
        for name in with_images
        if (match := _SPLIT.fullmatch(name.lower()))
    }
    only = bool(with_images) and {name.lower() for name in with_images} <= SPLIT_NAMES
    if only or len(set(kinds.values())) == 2:
        splits = ", ".join(sorted(kinds))
        first = sorted(kinds, key=lambda name: "train" not in name.lower())[0]
        raise UserError(
            f"{source} holds the splits {splits}, which are no classes; pack one of them:"
            f" {source / first}"
        )


def _is_download(folders: Sequence[str], found: _Found) -> bool:
    """Whether img2dataset made the folders: names of digits, with .json beside the images."""
    if not all(_DOWNLOAD_FOLDER.fullmatch(folder) for folder in folders):
        return False
    others = set(found.others)
    stems = [path.rpartition(".")[0] for path in found.images]
    return any(f"{stem}.json" in others for stem in stems) or any(
        name.endswith("_stats.json") for name in others
    )


def _keys(relatives: Sequence[str]) -> list[str]:
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


def _look(source: Path) -> _Found:
    found = _Found()
    on_loop = functools.partial(_count_loop, found)
    for parent, folders, names in walk_following_links(source, on_loop):
        base = _text(Path(parent).relative_to(source))
        if base and is_hidden(base):
            folders[:] = []
            continue
        if not base:
            found.folders.update({_text(Path(name)): None for name in folders})
            for name in [name for name in found.folders if is_hidden(name)]:
                del found.folders[name]
        for name in names:
            path = Path(parent) / name
            _add_file(found, path, _text(path.relative_to(source)))
    return found


def _count_loop(found: _Found, path: str) -> None:  # noqa: ARG001
    found.passed_over["links that lead back to a folder above them"] += 1


def _add_file(found: _Found, path: Path, relative: str) -> None:
    top, slash, _ = relative.partition("/")
    base = relative.rpartition("/")[2]
    if is_hidden(relative) or base.lower() in _SYSTEM_FILES:
        found.passed_over["hidden or of the system (.x, Thumbs.db)"] += 1
        return
    size = _size(path)
    is_image = "." in base and base.rpartition(".")[2].lower() in IMAGE_EXTENSIONS
    if size is None:
        found.passed_over["pipes, sockets and devices"] += 1
    elif is_image:
        found.images[relative] = (path, size)
        if slash:
            found.folders[top] = True
    else:
        found.others.append(relative)
        pass_over(found.passed_over, kind_of_file(base))
        if slash and found.folders.get(top) is None:
            found.folders[top] = False


def _size(path: Path) -> int | None:
    """Bytes of a file; None for pipes, sockets and devices, which would be waited for forever."""
    try:
        facts = path.stat()
    except OSError:
        # A link to nothing is met again, and named as bad, when it is to be read.
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _text(path: Path) -> str:
    """Names are recorded as text; a file system may hold any bytes, read in whatever locale."""
    if str(path) == ".":
        return ""
    try:
        return os.fsencode(path.as_posix()).decode()
    except UnicodeDecodeError:
        raise UserError(
            f"the file name {os.fsencode(path.as_posix())!r} is not UTF-8, as names in a dataset"
            " are; convert the names of the whole folder, such as with `convmv -f latin1 -t utf8 -r"
            " --notest FOLDER`"
        ) from None
