"""Local changes of the code, packed to travel with a job without building an image."""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError

PACKAGES = ("data_pipelines", "ifsq_train", "launchers")
MAX_TEXT_BYTES = 900_000
"""What a ConfigMap holds (1 MiB), with room for its other fields."""
_KEPT = {".py", ".yaml", ".yml", ".json", ".toml", ".txt", ".css", ".html", ".jinja", ".typed"}
_MAX_FILE_BYTES = 2_000_000


@dataclass(frozen=True)
class CodeBundle:
    """Packages as one text that fits a ConfigMap.

    Attributes:
        text: base64 of an xz-compressed tar.
        digest: first 12 digits of the SHA-256 of paths and contents: equal code, equal digest.
        files: number of files.
    """

    text: str
    digest: str
    files: int


def bundle_code(folder: Path) -> CodeBundle:
    """Pack the packages below a folder.

    Every folder with an ``__init__.py`` directly below `folder` is a package, and single modules
    there are taken too, so that plug-ins beside the program's own packages travel with it.

    Args:
        folder: top folder of a checkout, or one that holds only plug-ins.

    Raises:
        UserError: no package there, or more than a job can carry.
    """
    if not folder.is_dir():
        raise UserError(f"--code {folder}: not a folder; give the top folder of your checkout")
    files = sorted(_files(folder))
    if not files:
        raise UserError(
            f"--code {folder}: no Python package or module there; give the folder that holds"
            f" {', '.join(PACKAGES)} or your plug-in's package"
        )
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path in files:
            data, name = path.read_bytes(), path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{len(data)}\0".encode() + data)
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    text = base64.b64encode(lzma.compress(buffer.getvalue(), preset=9)).decode()
    if len(text) > MAX_TEXT_BYTES:
        raise UserError(
            f"--code {folder}: {len(files)} files take {len(text):,} bytes packed; a job carries"
            f" {MAX_TEXT_BYTES:,} at most: build an image, or give a folder with less in it"
        )
    return CodeBundle(text, digest.hexdigest()[:12], len(files))


def _files(folder: Path) -> Iterator[Path]:
    """Sources and the data files beside them; no caches, tests or links out of the folder."""
    packages = [path.parent for path in folder.glob("*/__init__.py")]
    yield from (path for path in folder.glob("*.py") if path.is_file())
    for package in packages:
        if package.name in ("tests", "test", "docs"):
            continue
        for path in package.rglob("*"):
            hidden = any(part.startswith((".", "__pycache__")) for part in path.parts[-4:])
            if hidden or path.suffix not in _KEPT or path.is_symlink() or not path.is_file():
                continue
            if path.stat().st_size <= _MAX_FILE_BYTES:
                yield path
