"""Images of a folder on this machine, in a fixed order, with labels from class folders."""

import os
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from data_pipelines.images.pixels import ALLOWED_EXTENSIONS


@dataclass(frozen=True)
class SourceFile:
    """An image file; `relative` is its path below the source folder, `label` -1 means none."""

    path: Path
    relative: str
    label: int


def list_images(source: Path) -> tuple[list[SourceFile], list[str]]:
    """All images below `source`, sorted by path, and the class names.

    The folders directly in `source` that hold images are the classes, sorted; a label is the
    position in that list. Images directly in `source` have no labels. Hidden files and folders and
    files with other extensions are passed over.

    Raises:
        UserError: no such folder, no images, or images both directly in it and in class folders.
    """
    if not source.is_dir():
        what = "is not a folder" if source.exists() else "does not exist"
        raise UserError(f"{source} {what}; give a folder of class folders with images")
    relatives = sorted(_walk(source))
    if not relatives:
        allowed = ", ".join("." + extension for extension in ALLOWED_EXTENSIONS)
        raise UserError(
            f"{source} holds no images; allowed are {allowed}, in class folders or directly in it"
        )
    flat = [path for path in relatives if "/" not in path]
    if flat and len(flat) < len(relatives):
        raise UserError(
            f"{source} holds images both directly ({flat[0]}) and in folders; "
            "move them all into class folders, or all out of them"
        )
    classes = sorted({path.split("/")[0] for path in relatives if "/" in path})
    labels = {name: label for label, name in enumerate(classes)}
    files = [SourceFile(source / r, r, labels.get(r.split("/")[0], -1)) for r in relatives]
    return files, classes


def _walk(source: Path) -> list[str]:
    found: list[str] = []
    for parent, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            extension = name.rpartition(".")[2].lower()
            if not name.startswith(".") and extension in ALLOWED_EXTENSIONS and "." in name:
                found.append((Path(parent) / name).relative_to(source).as_posix())
    return found
