"""Reading weights that others have published, without running any code of theirs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ifsq_train.models.safe_pickle import load_torch_file


def read_weight_file(path: Path) -> Mapping[str, Any]:
    """Content of a .safetensors file, or of a torch file without running anything in it.

    Objects that are neither tensors nor plain values are `safe_pickle.Placeholder`.

    Raises:
        ValueError: the file cannot be read as either.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else load_torch_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path}: holds a {type(content).__name__}, expected tensors by name")
    return content


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; see `read_weight_file`.

    Raises:
        ValueError: it has anything but tensors.
    """
    content = read_weight_file(path)
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(f"{path}: expected tensors by name, found also {others[:5]}")
    return dict(content)


def refuse_values(name: str, value: Tensor, path: Path) -> None:
    """Raise ValueError for a tensor that holds NaN or infinity, or numbers nobody computes with."""
    try:
        finite = not value.is_floating_point() or bool(torch.isfinite(value).all())
    except RuntimeError:  # torch has no kernel for it
        raise ValueError(
            f"{path}: {name} holds numbers of {value.dtype}, which cannot be computed with here;"
            " take a file of fp32, fp16 or bf16"
        ) from None
    if not finite:
        raise ValueError(f"{path}: {name} has values that are not finite; take another file")
