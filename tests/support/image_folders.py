"""Folders of small real images, for tests that start processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_photos(folder: Path, count: int) -> Path:
    """`count` smooth JPEGs of different sizes in three class folders."""
    rng = np.random.default_rng(0)
    for number in range(count):
        width, height = 48 + number % 23, 44 + number % 31
        small = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        path = folder / f"class{number % 3}" / f"photo{number:04d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
    return folder
