"""The committed file: derived values as float64 or int64, inputs and weights as float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from tests.goldens import formulas, networks

PATH = Path(__file__).with_name("derived.safetensors")
Values = dict[str, np.ndarray]


def derive_all() -> Values:
    """Every value, by name."""
    parts = {**formulas.derive(), **networks.derive()}
    return {name: np.asarray(value, order="C") for name, value in parts.items()}


def write(values: Values) -> None:
    """Replace the committed file."""
    save_file(values, PATH)


def read() -> dict[str, torch.Tensor]:
    """The committed values as tensors of the stored types."""
    return {name: torch.from_numpy(value) for name, value in load_file(PATH).items()}
