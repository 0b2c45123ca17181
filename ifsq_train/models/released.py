"""Taking over checkpoints of the released code: same names, other wrapping.

Tokenizer files hold ``state_dict.gen_model`` (live) and ``ema_state_dict`` (averaged, names with
``module.`` before them); generator files ``model`` and ``ema``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ifsq_train.models.quantizers.vq import NormalizedVQ
from ifsq_train.models.weight_files import read_weight_file

_PLACES = {
    ("tokenizer", True): ("ema_state_dict",),
    ("tokenizer", False): ("state_dict", "gen_model"),
    ("generator", True): ("ema",),
    ("generator", False): ("model",),
}


def load_released_tokenizer(network: nn.Module, path: Path, *, averaged: bool = True) -> None:
    """Load a released tokenizer checkpoint into a `Tokenizer` of the same architecture.

    The quantizer's integer constants, which the averaged copy holds as floats, are left out. A
    tokenizer with `NormalizedVQ` takes LlamaGen's public files, which hold one set of weights.

    Raises:
        ValueError: another kind of file, or tensors missing, left over or of another shape.
    """
    if isinstance(getattr(network, "quantize", None), NormalizedVQ):
        load_llamagen_tokenizer(network, path)
    else:
        _load(network, path, "tokenizer", averaged)


def load_llamagen_tokenizer(network: nn.Module, path: Path) -> None:
    """Load a public LlamaGen VQ checkpoint into a `Tokenizer` of the same architecture.

    That is `NormalizedVQ(16384, 8)` with attention, without double_z, 256 z_channels and
    multipliers (1, 1, 2, 2, 4) for VQ-16 or (1, 2, 2, 4) for VQ-8.

    Raises:
        ValueError: another kind of file, or tensors missing, left over or of another shape.
    """
    content: Any = read_weight_file(path)
    found = next((content[key] for key in ("ema", "model") if key in content), content)
    levels = len(network.get_submodule("decoder.up"))  # pyright: ignore[reportArgumentType]
    weights = {
        _llamagen_name(name, levels): value
        for name, value in found.items()
        if name != "quantize.codebook_used"
    }
    _load_strictly(network, weights, path)


def _llamagen_name(name: str, levels: int) -> str:
    """Our name of a tensor: other words, and the decoder's levels count from the other end."""

    def level(match: re.Match[str]) -> str:
        number = int(match[2])
        if match[1] == "encoder":
            return f"encoder.down.{number}."
        return f"decoder.up.{levels - 1 - number}."

    renamed = re.sub(r"^(encoder|decoder)\.conv_blocks\.(\d+)\.", level, name)
    return renamed.replace(".res.", ".block.").replace("coder.mid.", "coder.mid_block.")


def load_released_generator(network: nn.Module, path: Path, *, averaged: bool = True) -> None:
    """Load a released LlamaGen checkpoint into a `LlamaGen` of the same architecture.

    Raises:
        ValueError: another kind of file, or tensors missing, left over or of another shape.
    """
    _load(network, path, "generator", averaged)


def _load(network: nn.Module, path: Path, kind: str, averaged: bool) -> None:
    place = _PLACES[kind, averaged]
    content: Any = read_weight_file(path)
    for key in place:
        if not isinstance(content, Mapping) or key not in content:
            where = ".".join(place)
            raise ValueError(f"{path}: no '{where}', so not a released {kind} checkpoint")
        content = content[key]
    known = network.state_dict()
    weights: dict[str, Tensor] = {}
    for name, value in content.items():
        plain = name.removeprefix("module.")
        if plain in known or not plain.startswith("quantize."):
            weights[plain] = value
    _load_strictly(network, weights, path)


def _load_strictly(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error
