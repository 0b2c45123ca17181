"""Reading weights that others have published, without running any code of theirs."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_weight_file(path: Path) -> Mapping[str, Any]:
    """Content of a .safetensors file, or of a torch file restricted to tensors and containers.

    Raises:
        ValueError: the file cannot be read as either.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file ({error})") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: not a torch file of plain tensors ({reason})") from error
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
