"""Reading the tensors recorded from the released code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor


class Golden:
    """One pack: tensors by name, and the configuration that made them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        path = folder / f"{name}.safetensors"
        if not path.is_file():
            pytest.skip(f"no recorded tensors {path.name}")
        with safe_open(path, "pt") as handle:
            self.tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118
            self.config: dict[str, Any] = json.loads(handle.metadata()["config"])

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose name starts with the prefix, without it."""
        cut = len(prefix)
        return {key[cut:]: value for key, value in self.tensors.items() if key.startswith(prefix)}


def assert_close(actual: Tensor, expected: Tensor, rtol: float, atol: float = 0.0) -> None:
    """torch's comparison with explicit tolerances and no type conversion surprises."""
    torch.testing.assert_close(actual.detach().to(expected.dtype), expected, rtol=rtol, atol=atol)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the expected tensor, in float64."""
    wide, reference = actual.detach().double(), expected.double()
    assert wide.shape == reference.shape
    return float((wide - reference).norm() / reference.norm())


# A deep network's fp32 result depends on the order of its sums: the recorded tensors are
# themselves 1e-6 to 1.5e-6 away from the same network in float64 (forward), ours 2e-6.
WHOLE_NETWORK = 1e-5


def assert_relative(actual: Tensor, expected: Tensor, tolerance: float = WHOLE_NETWORK) -> None:
    """Close as a whole tensor: single entries near zero may differ by fp32 summation order."""
    error = relative_error(actual, expected)
    assert error <= tolerance, f"relative error {error:.2e} exceeds {tolerance:.0e}"
