"""Images of a folder on this machine, in a fixed order, with labels from class folders."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.pixels import ALLOWED_EXTENSIONS
from data_pipelines.images.packing.classes import ClassMap, class_map_of
from data_pipelines.images.packing.shards import PackItem
from data_pipelines.storage.local import raise_unless_missing


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


def list_images(
    source: Path, class_map: ClassMap | None = None
) -> tuple[list[SourceFile], list[str]]:
    """All images below `source`, sorted by path, and the class names.

    The folders directly in `source` that hold images are the classes, numbered in sorted order or
    by `class_map`. Images directly in `source` have no labels. Hidden files and folders and files
    with other extensions are passed over.

    Raises:
        UserError: no such folder, no images, images both directly in it and in class folders, a
            class folder that the map does not have, or a name that is not UTF-8.
    """
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise UserError(f"{source} {what}; give a folder of class folders with images")
    sizes = dict(sorted(_walk(source)))
    if not sizes:
        allowed = ", ".join("." + extension for extension in ALLOWED_EXTENSIONS)
        raise UserError(
            f"{source} holds no images; allowed are {allowed}, in class folders or directly in it"
        )
    flat = [path for path in sizes if "/" not in path]
    if flat and len(flat) < len(sizes):
        raise UserError(
            f"{source} holds images both directly ({flat[0]}) and in folders; "
            "move them all into class folders, or all out of them"
        )
    folders = sorted({path.partition("/")[0] for path in sizes if "/" in path})
    classes = class_map or class_map_of(folders)
    labels = {folder: classes.number(folder) for folder in folders}
    files = [
        SourceFile(source / path, path, key, labels.get(path.partition("/")[0], -1), num_bytes)
        for (path, num_bytes), key in zip(sizes.items(), _keys(list(sizes)), strict=True)
    ]
    return files, list(classes.names) if folders else []


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


def _walk(source: Path) -> Iterator[tuple[str, int]]:
    """Relative path and size of every image."""
    for parent, folders, names in os.walk(source, onerror=raise_unless_missing):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            extension = name.rpartition(".")[2].lower()
            if not name.startswith(".") and extension in ALLOWED_EXTENSIONS and "." in name:
                path = Path(parent) / name
                size = _size(path)
                if size is not None:
                    yield _checked_name(path.relative_to(source).as_posix()), size


def _size(path: Path) -> int | None:
    """Bytes of a file; None for pipes, sockets and devices, which would be waited for forever."""
    try:
        facts = path.stat()
    except OSError:
        # A link to nothing is met again, and named as bad, when it is to be read.
        return 0
    return facts.st_size if stat.S_ISREG(facts.st_mode) else None


def _checked_name(relative: str) -> str:
    """Names are recorded as text; a file system may hold any bytes."""
    try:
        relative.encode()
    except UnicodeEncodeError:
        raise UserError(f"the file name {relative!r} is not UTF-8; rename it") from None
    return relative
