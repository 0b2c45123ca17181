"""Example images: scikit-learn's handwritten digits as PNG files in class folders."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_pipelines.errors import UserError
from launchers.stages import held_out

DIGITS_MAXIMUM = 16.0


def write_digits(folder: Path) -> None:
    """Write 1,797 scans of 8 x 8 pixels as ``folder/<digit>/<number>.png``, if not there yet.

    Raises:
        UserError: scikit-learn is not installed.
    """
    if not folder.is_dir():
        _write(folder, lambda _: "")


def write_split_digits(folder: Path) -> dict[str, int]:
    """Write the digits as ``folder/train/<digit>/...`` and ``folder/held-out/<digit>/...``.

    Returns:
        Number of images by part.

    Raises:
        UserError: the folder exists, or scikit-learn is not installed.
    """
    if folder.exists():
        raise UserError(f"{folder} exists already; give a new folder, or remove it first")
    _write(folder, lambda name: "held-out" if held_out(name) else "train")
    return {part: len(list((folder / part).glob("*/*.png"))) for part in ("train", "held-out")}


def _write(folder: Path, part: Callable[[str], str]) -> None:
    """All digits, each below the folder that `part` names for it; appears at once or not."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "the example digits come with scikit-learn, which is not installed; run"
            " pip install scikit-learn, or use a folder of your own images"
        ) from None
    images, labels = _arrays(load_digits())
    unfinished = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        name = f"{label}/{number:04d}.png"
        path = unfinished / part(name) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = np.rint(pixels * (255.0 / DIGITS_MAXIMUM)).astype(np.uint8)
        Image.fromarray(grey).convert("RGB").save(path)
    unfinished.replace(folder)


def _arrays(digits: Any) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images [N, 8, 8] in [0, 16] and labels [N] of scikit-learn's untyped bunch."""
    return digits.images, digits.target
