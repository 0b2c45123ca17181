"""CIFAR images of the reference data as a packed dataset."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from data_pipelines.images.packing.index import index_tars
from tests.support.repository import SHARED

ARCHIVE = SHARED / "data" / "cifar10-train.tar.zst"


def write_cifar(folder: Path, count: int, per_tar: int = 2000) -> Path:
    """Index `count` images as WebDataset tars below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, int] = {}
    with (
        pa.OSFile(str(ARCHIVE)) as raw,
        pa.CompressedInputStream(raw, "zstd") as plain,
        tarfile.open(fileobj=plain, mode="r|") as archive,
    ):
        images = _read_all(archive)
        for number in itertools.count():
            part = list(itertools.islice(images, max(0, min(per_tar, count - number * per_tar))))
            if not part:
                break
            with tarfile.open(folder / f"cifar-{number:04}.tar", "w") as tar:
                for name, data in part:
                    label = labels.setdefault(Path(name).parent.name, len(labels))
                    key = f"{label}-{Path(name).stem}"
                    _add(tar, f"{key}.jpg", data)
                    _add(tar, f"{key}.cls", str(label).encode())
    index_tars(folder, validate=False)
    return folder


def _read_all(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if member.isfile() and (file := archive.extractfile(member)) is not None:
            yield member.name, file.read()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    tar.addfile(entry, io.BytesIO(data))
