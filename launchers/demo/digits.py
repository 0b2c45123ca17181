"""The demo's images: scikit-learn's handwritten digits as PNG files in class folders."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import UserError

DIGITS_MAXIMUM = 16.0


def write_digits(folder: Path) -> None:
    """Write 1,797 scans of 8 x 8 pixels as ``folder/<digit>/<number>.png``, if not there yet.

    Raises:
        UserError: scikit-learn is not installed.
    """
    if folder.is_dir():
        return
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the demo's digits come with scikit-learn, which is not installed; run"
            " pip install 'ifsq-train[demo]', or give a folder of images with --data"
        ) from None
    images, labels = _arrays(load_digits())
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        path = unfinished / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels * (255.0 / DIGITS_MAXIMUM)).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(path)
    unfinished.replace(folder)


def _arrays(digits: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images [N, 8, 8] in [0, 16] and labels [N] of scikit-learn's untyped bunch."""
    return digits.images, digits.target
