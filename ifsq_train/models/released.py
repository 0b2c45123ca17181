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
from ifsq_train.models.weight_files import read_weight_file, refuse_values

_AVERAGED = (("ema_state_dict",), ("ema",), ("model_ema",))
_LIVE = (("state_dict", "gen_model"), ("model",), ("state_dict",), ("module",))
_WRAPPERS = ("module.", "_orig_mod.")


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
    found = _weights_in(path, averaged=True)
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
    known = network.state_dict()
    weights = {
        name: value
        for name, value in _weights_in(path, averaged=averaged, kind=kind).items()
        if name in known or not name.startswith("quantize.")
    }
    _load_strictly(network, weights, path)


def _weights_in(path: Path, *, averaged: bool, kind: str = "tokenizer") -> dict[str, Tensor]:
    """The tensors of a file, wherever in it they are; a set that is missing is the other one.

    Files hold ``{"model": ..., "ema": ...}``, ``{"state_dict": {"gen_model": ...}}``, one of them
    alone, or plain tensors by name; wrappers of parallel or compiled networks precede names.
    """
    content: Any = read_weight_file(path)
    places = (*_AVERAGED, *_LIVE, ()) if averaged else (*_LIVE, (), *_AVERAGED)
    for place in places:
        found: Any = content
        for key in place:
            found = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(found, Mapping) and any(isinstance(v, Tensor) for v in found.values()):
            return _plain(found, path)
    names = ", ".join(str(name)[:30] for name in list(content)[:8])
    raise ValueError(f"{path}: not a released {kind} checkpoint; no weights in it, only: {names}")


def _plain(found: Mapping[Any, Any], path: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for name, value in found.items():
        plain = str(name)
        while plain.startswith(_WRAPPERS):
            plain = plain.partition(".")[2]
        if not isinstance(value, Tensor):
            what = getattr(value, "source", type(value).__name__)
            raise ValueError(f"{path}: {plain} is no tensor but {what}; give a file of weights")
        refuse_values(plain, value, path)
        weights[plain] = value
    return weights


def _load_strictly(network: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    known = network.state_dict()
    both = [name for name in known if name in weights]
    others = [
        f"{name} {tuple(weights[name].shape)} for {tuple(known[name].shape)}"
        for name in both
        if weights[name].shape != known[name].shape
    ]
    kinds = [
        f"{name} {weights[name].dtype} for {known[name].dtype}"
        for name in both
        if weights[name].is_floating_point() != known[name].is_floating_point()
    ]
    faults = {
        "missing": [name for name in known if name not in weights],
        "left over": [name for name in weights if name not in known],
        "size mismatch": others,
        "another kind of number": kinds,
    }
    if found := [f"{what}: {_some(names)}" for what, names in faults.items() if names]:
        raise ValueError(f"{path}: weights of another architecture ({'; '.join(found)})")
    network.load_state_dict(weights, strict=True)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(name[:80] for name in names[:3]) + more
