"""A data source that makes images in memory, a plug-in of one file: coloured discs and squares."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from data_pipelines.images.collection import ImageCollection
from ifsq_train.config import Config
from ifsq_train.plugins import SourceKind


class ShapesConfig(Config):
    """Discs (class 0) and squares (class 1) of random colour, size and place."""

    kind: Literal["shapes"]
    num_images: int = Field(default=1000, ge=1)
    image_size: int = Field(default=32, ge=8)
    seed: int = Field(default=0, ge=0)


class Shapes(ImageCollection):
    """Image i is drawn from the seed and i."""

    def __init__(self, config: ShapesConfig) -> None:
        self.num_samples, self.seed = config.num_images, config.seed
        self.height = self.width = config.image_size
        self.classes = ["disc", "square"]
        self.digest = hashlib.sha256(f"shapes 1 {config.model_dump_json()}".encode()).hexdigest()

    def image(self, index: int) -> tuple[NDArray[np.uint8], int]:
        rng = np.random.default_rng((self.seed, index))
        label, size = index % 2, self.height
        radius = rng.uniform(size / 8, size / 3)
        rows, columns = (np.arange(size) - middle for middle in rng.uniform(0, size, 2))
        down, across = np.abs(rows)[:, None], np.abs(columns)[None]
        inside = np.maximum(down, across) < radius if label else np.hypot(down, across) < radius
        back, front = rng.integers(0, 256, (2, 3), dtype=np.uint8)
        return np.where(inside[..., None], front, back), label


KIND = SourceKind(config=ShapesConfig, open=Shapes)
