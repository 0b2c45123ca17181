"""Files that hold drawn images: one npz, one file per image, or tar shards; and a preview."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.array_files import open_npz
from data_pipelines.errors import DataError
from data_pipelines.storage.open import Storage, scratch_file

Format = Literal["npz", "png", "webp", "tar"]
Parts = Iterable[tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""Consecutive images uint8 [n, H, W, 3] with labels int64 [n]."""

SAMPLES_NPZ, PREVIEW = "samples.npz", "preview.png"
IMAGE_FOLDER, SHARD_FOLDER = "images/", "shards/"
LABELS_NPY = "images/labels.npy"
_SIX = "[0-9]" * 6
IMAGE_FILES = (
    SAMPLES_NPZ,
    PREVIEW,
    LABELS_NPY,
    *(f"{IMAGE_FOLDER}{_SIX}{more}.{kind}" for kind in ("png", "webp") for more in ("", "[0-9]*")),
    f"{SHARD_FOLDER}samples-{_SIX}[0-9][0-9].tar",
)
"""Patterns of the files that a set of samples consists of."""
_ENCODE_THREADS = 4


def write_images(storage: Storage, kind: Format, count: int, parts: Parts) -> str:
    """Write all images; returns the sha256 (hex) of their pixels and labels, in order."""
    digest = hashlib.sha256()
    write: Callable[[Storage, int, Parts], None] = {
        "npz": _write_npz,
        "png": lambda *given: _write_folder("png", *given),
        "webp": lambda *given: _write_folder("webp", *given),
        "tar": _write_shards,
    }[kind]
    write(storage, count, _hashed(parts, digest))
    return digest.hexdigest()


def read_images(
    storage: Storage, kind: Format, sha256: str
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """What `write_images` wrote: images uint8 [N, H, W, 3] and labels int64 [N].

    Raises:
        DataError: missing or changed.
    """
    try:
        images, labels = _READERS[kind](storage)
    except (
        ValueError,
        KeyError,
        OSError,
        EOFError,
        tarfile.TarError,
        zipfile.BadZipFile,
        DataError,
    ) as error:
        raise _damaged(storage) from error
    digest = hashlib.sha256()
    for _ in _hashed([(images, labels)], digest):
        pass
    if digest.hexdigest() != sha256:
        raise _damaged(storage)
    return images, labels


def write_preview(storage: Storage, wanted: int, count: int, parts: Parts) -> None:
    """Some images, evenly spread over all, as one picture."""
    wanted = min(wanted, count)
    if not wanted:
        return
    chosen = {index * count // wanted for index in range(wanted)}
    tiles: list[NDArray[np.uint8]] = []
    at = 0
    for images, _ in parts:
        tiles += [image for offset, image in enumerate(images) if at + offset in chosen]
        at += len(images)
    storage.write(PREVIEW, encode_image(image_grid(np.stack(tiles)), "png"))


def image_grid(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [N, H, W, 3] side by side in a near-square uint8 [rows H, columns W, 3], white rest."""
    count, height, width, channels = images.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    cells = np.full((rows * columns, height, width, channels), 255, np.uint8)
    cells[:count] = images
    grid = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def encode_image(image: NDArray[np.uint8], kind: Literal["png", "webp"]) -> bytes:
    """An image uint8 [H, W, 3] as a file, without loss."""
    buffer = io.BytesIO()
    options: dict[str, Any] = {"lossless": True} if kind == "webp" else {"compress_level": 1}
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()


def _hashed(parts: Parts, digest: Any) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64]]]:
    """The parts as they are; the digest has seen every pixel, then every label, afterwards."""
    seen: list[NDArray[np.int64]] = []
    for images, labels in parts:
        digest.update(np.ascontiguousarray(images))
        seen.append(labels)
        yield images, labels
    digest.update(np.concatenate(seen).astype("<i8"))


def _write_npz(storage: Storage, count: int, parts: Parts) -> None:
    """arr_0 images, arr_1 labels; never more than a part in memory."""
    with scratch_file(storage, SAMPLES_NPZ) as (file, path):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            labels = []
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                for index, (images, some) in enumerate(parts):
                    if index == 0:
                        _write_header(member, (count, *images.shape[1:]), images.dtype)
                    member.write(images.tobytes())
                    labels.append(some)
            with archive.open("arr_1.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate(labels))
        file.flush()
        storage.upload(SAMPLES_NPZ, path)


def _write_header(member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
    described = {
        "shape": shape,
        "fortran_order": False,
        "descr": np.lib.format.dtype_to_descr(dtype),
    }
    np.lib.format.write_array_header_1_0(member, described)


def _read_npz(storage: Storage) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    with open_npz(storage.read(SAMPLES_NPZ), f"{storage.url}/{SAMPLES_NPZ}") as stored:
        return stored["arr_0"], stored["arr_1"]


def _write_folder(kind: Literal["png", "webp"], storage: Storage, count: int, parts: Parts) -> None:
    digits = max(6, len(str(count - 1)))
    labels, at = [], 0
    with ThreadPoolExecutor(_ENCODE_THREADS) as pool:
        for images, some in parts:
            names = [f"{IMAGE_FOLDER}{at + i:0{digits}d}.{kind}" for i in range(len(images))]
            encoded = pool.map(lambda image: encode_image(image, kind), images)
            for name, data in zip(names, encoded, strict=True):
                storage.write(name, data)
            labels.append(some)
            at += len(images)
    buffer = io.BytesIO()
    np.save(buffer, np.concatenate(labels))
    storage.write(LABELS_NPY, buffer.getvalue())


def _read_folder(storage: Storage) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    names = [
        name
        for name in sorted(storage.list(IMAGE_FOLDER))
        if name != LABELS_NPY and any(fnmatchcase(name, pattern) for pattern in IMAGE_FILES)
    ]
    images = np.stack([_decode(storage.read(name)) for name in names])
    return images, np.load(io.BytesIO(storage.read(LABELS_NPY)), allow_pickle=False)


def _write_shards(storage: Storage, count: int, parts: Parts) -> None:
    digits, at = max(6, len(str(count - 1))), 0
    for index, (images, labels) in enumerate(parts):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as shard:
            for image, label in zip(images, labels.tolist(), strict=True):
                key = f"{at:0{digits}d}"
                _add(shard, f"{key}.png", encode_image(image, "png"))
                _add(shard, f"{key}.cls", str(label).encode())
                at += 1
        storage.write(f"{SHARD_FOLDER}samples-{index:08d}.tar", buffer.getvalue())


def _add(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    shard.addfile(info, io.BytesIO(data))


def _read_shards(storage: Storage) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    images, labels = [], []
    for name in sorted(storage.list(SHARD_FOLDER)):
        with tarfile.open(fileobj=io.BytesIO(storage.read(name))) as shard:
            for member in shard.getmembers():
                file = shard.extractfile(member)
                data = b"" if file is None else file.read()
                if member.name.endswith(".png"):
                    images.append(_decode(data))
                else:
                    labels.append(int(data))
    return np.stack(images), np.array(labels, np.int64)


def _decode(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


_READERS: dict[Format, Callable[[Storage], tuple[NDArray[np.uint8], NDArray[np.int64]]]] = {
    "npz": _read_npz,
    "png": _read_folder,
    "webp": _read_folder,
    "tar": _read_shards,
}


def _damaged(storage: Storage) -> DataError:
    return DataError(
        f"{storage.url} holds damaged or incomplete samples; delete it and run `ifsq sample` again"
    )
