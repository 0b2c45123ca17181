"""The images of an evaluation: held-out data in a view, or samples from a file."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_pipelines.array_files import open_npz
from data_pipelines.errors import DataError
from data_pipelines.regular_files import open_regular
from data_pipelines.views import ViewSpec
from ifsq_train.config.sources import ImagePlace
from ifsq_train.data.images import open_image_source
from ifsq_train.distributed.context import RunContext
from ifsq_train.plugins.sources import open_images_of
from ifsq_train.sampling.draw import read_samples

VIEW_SEED, EPOCH = 0, 0


@dataclass
class HeldOutImages:
    """A dataset in one view, in order of sample ids, read anew by every `batches()`."""

    url: ImagePlace
    view: ViewSpec
    batch_size: int

    def __post_init__(self) -> None:
        manifest = open_images_of(self.url)
        self.num_samples, self.digest = manifest.num_samples, manifest.digest
        self.decoder = ""

    def batches(self, context: RunContext) -> Iterator[Tensor]:
        """A rank's consecutive share, float32 [B, 3, H, W] in [-1, 1]; over all ranks each once.

        Raises:
            DataError: a damaged dataset, or an image that cannot be decoded.
        """
        source = open_image_source(
            self.url, self.view, decoder="auto", seed=VIEW_SEED, device=context.device
        )
        self.decoder = source.decoder.name
        try:
            for first, last in batch_ranges(self.num_samples, self.batch_size, context):
                yield source.batch(np.arange(first, last, dtype=np.int64), EPOCH).images
        finally:
            source.close()


@dataclass
class StoredImages:
    """Images uint8 [N, H, W, 3] in memory."""

    images: NDArray[np.uint8]
    batch_size: int

    @property
    def num_samples(self) -> int:
        """Number of images, N."""
        return len(self.images)

    def batches(self, context: RunContext) -> Iterator[Tensor]:
        """As `HeldOutImages.batches`."""
        for first, last in batch_ranges(len(self.images), self.batch_size, context):
            part = torch.from_numpy(self.images[first:last]).to(context.device)
            yield part.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def batch_ranges(count: int, batch_size: int, context: RunContext) -> Iterator[tuple[int, int]]:
    """First and last (excluded) of each batch of a rank's consecutive share of `count` images."""
    begin, end = (r * count // context.world_size for r in (context.rank, context.rank + 1))
    for first in range(begin, end, batch_size):
        yield first, min(first + batch_size, end)


def open_samples(place: str, batch_size: int) -> StoredImages:
    """Samples of a folder of `ifsq sample` or of an .npz file.

    Raises:
        DataError: nothing there, unfinished, damaged, or not images.
    """
    if not place.endswith(".npz"):
        return StoredImages(read_samples(place).images, batch_size)
    images = read_npz_images(Path(place))
    if images is None:
        raise DataError(f"{place}: no images uint8 [N, H, W, 3] under 'arr_0'")
    return StoredImages(images, batch_size)


def read_npz_images(path: Path) -> NDArray[np.uint8] | None:
    """``arr_0`` of an .npz file, if it has images there.

    Raises:
        DataError: no such file.
    """
    try:
        with open_npz(path, str(path)) as arrays:
            images = arrays["arr_0"] if "arr_0" in arrays.files else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not an .npz file ({error})") from error
    if images is None or images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        return None
    return images


def file_digest(path: str) -> str:
    """sha256 (hex) of a file."""
    with open_regular(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
