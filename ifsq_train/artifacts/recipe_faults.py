"""What a recipe says that no network can be made of, or that cannot train: found without data.

Checks work on plain values, so that they add to the faults of the schema instead of waiting for a
recipe that has none. A check that meets a value of the wrong type leaves it to the schema.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from data_pipelines.views import Size, shown_size, sides
from ifsq_train.config import AdversarialConfig, TokenizerConfig

MAX_CODEBOOK = 2**63 - 1
"""Token ids are int64."""
_WIDEST, _NARROWEST = 100.0, 0.01
"""Inputs of a bound are of about unit variance; these are far off on either side."""


def recipe_faults(values: Mapping[str, Any]) -> list[str]:
    """Faults of a resolved recipe as ``key: what was found, what is allowed``."""
    if values.get("kind") != "train":
        return []
    found: list[str] = []
    for check in (_quantizer, _strides, _discriminator, _alignment_depth):
        found += _lenient(check, values)
    return found


def _lenient(
    check: Callable[[Mapping[str, Any]], Iterator[str]], values: Mapping[str, Any]
) -> list[str]:
    try:
        return list(check(values))
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return []


def _quantizer(values: Mapping[str, Any]) -> Iterator[str]:
    config = values["task"]["model"]["quantizer"]
    if config["kind"] not in ("fsq", "ifsq"):
        return
    key, levels = "task.model.quantizer", [int(level) for level in config["levels"]]
    if config.get("bound") == "shifted" and 2 in levels:
        yield (
            f"{key}.levels: found 2 with bound: shifted, which gives one of the two codes to all"
            " inputs; use 3 levels or more, or kind: lfq for one bit per channel"
        )
    yield from _overflow(key, levels, config.get("factorized_channels"))
    yield from _slope(key, levels, config.get("alpha"))


def _overflow(key: str, levels: list[int], groups: list[int] | None) -> Iterator[str]:
    at = 0
    for size in groups or [len(levels)]:
        codes = math.prod(levels[at : at + size])
        at += size
        if codes > MAX_CODEBOOK:
            yield (
                f"{key}.levels: {size} channels make {codes:.3g} codes, more than the"
                f" {MAX_CODEBOOK:.3g} a token id can name; use fewer levels, or"
                " factorized_channels to split tokens"
            )


def _slope(key: str, levels: list[int], alpha: Any) -> Iterator[str]:
    """The bound is 2 sigmoid(alpha z) - 1 = tanh(alpha z / 2), times half the levels."""
    if alpha is None:
        return
    slope = float(alpha)
    if not math.isfinite(slope):
        yield f"{key}.alpha: found {alpha}; use a finite number, such as 1.6"
        return
    half = [(level - 1) / 2 for level in levels if level > 2]
    if slope <= 0 or not half:
        return
    if all(math.tanh(slope * _WIDEST / 2) * size < 0.5 for size in half):
        yield (
            f"{key}.alpha: found {alpha}, so small that every input is rounded to the middle"
            " level; use about 1 to 3 (1.6 is iFSQ, 2.0 is FSQ)"
        )
    if all(math.tanh(slope * _NARROWEST / 2) * size > size - 0.5 for size in half):
        yield (
            f"{key}.alpha: found {alpha}, so large that every input is rounded to one of the two"
            " end levels and gradients vanish; use about 1 to 3 (1.6 is iFSQ, 2.0 is FSQ)"
        )


def _size(values: Mapping[str, Any]) -> Size:
    return sides(values["data"]["view"]["image_size"])


def _strides(values: Mapping[str, Any]) -> Iterator[str]:
    if values["task"]["kind"] != "tokenizer":
        return
    default = TokenizerConfig.model_fields["channel_multipliers"].default
    multipliers = values["task"]["model"].get("channel_multipliers", default)
    ratio, size = 2 ** (len(multipliers) - 1), _size(values)
    if any(side % ratio for side in size):
        less, more = (
            tuple(max(1, side // ratio + (more and side % ratio > 0)) * ratio for side in size)
            for more in (False, True)
        )
        near = sorted({shown_size(less), shown_size(more)}, key=lambda text: (len(text), text))
        yield (
            f"data.view.image_size: found {shown_size(size)}, not a multiple of the {ratio} pixels"
            f" per latent cell that {len(multipliers)} channel_multipliers make; use"
            f" {' or '.join(near)}"
        )


def _discriminator(values: Mapping[str, Any]) -> Iterator[str]:
    task = values["task"]
    if task["kind"] != "tokenizer" or task.get("adversarial", {}) is None:
        return
    default = AdversarialConfig.model_fields["num_layers"].default
    layers = int(task.get("adversarial", {}).get("num_layers", default))
    size = min(_size(values))
    cells = size // 2**layers
    if cells < 3:  # two more convolutions take one cell each
        most = max(0, int(math.log2(size / 3))) if size >= 6 else 0
        use = f"use num_layers: {most}" if most else "use adversarial: null"
        yield (
            f"task.adversarial.num_layers: found {layers}, which leave nothing of images of"
            f" {size} pixels; {use}, or images of {3 * 2**layers} pixels or more"
        )


def _alignment_depth(values: Mapping[str, Any]) -> Iterator[str]:
    task = values["task"]
    if task["kind"] not in ("autoregressive", "diffusion") or not task.get("repa"):
        return
    model, depth = task["model"], int(task["repa"].get("depth", 8))
    layers = model.get("num_layers")
    if layers is None:
        from ifsq_train.models import dit, llamagen

        sizes: Mapping[str, Any] = llamagen.SIZES if task["kind"] == "autoregressive" else dit.SIZES
        layers = sizes[model["size"]]["num_layers"]
    if depth > int(layers):
        yield (
            f"task.repa.depth: found {depth}, beyond the model's {layers} blocks; use {layers} or"
            " less"
        )
