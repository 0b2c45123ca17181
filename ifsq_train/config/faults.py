"""What is wrong with a value of a recipe, in the words of its keys."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import ErrorDetails

from data_pipelines.documents import shown

Schema = Callable[[], dict[str, Any]]
_LARGEST = 10**12
_LARGEST_SEED = (1 << 63) - 1

_CHANNELS = (
    "images have task.model.image_channels, latents as many channels as the quantizer has levels or"
    " num_channels"
)
_OTHER_NAMES = {
    "in_channels": _CHANNELS,
    "out_channels": _CHANNELS,
    "channels": _CHANNELS,
    "embed_dim": _CHANNELS,
    "latent_channels": _CHANNELS,
    "hidden_size": "the width of transformers is dim, that of tokenizers base_channels",
    "vocab_size": "codebook sizes follow from the tokenizer",
    "learning_rate": "learning rates are optim.NETWORK.lr",
    "batch_size": "the batch over all workers is data.global_batch_size",
    "epochs": "the length of a run is steps",
    "num_epochs": "the length of a run is steps",
    "resolution": "the size of images is data.view.image_size",
}
"""What keys of other programs are here."""

_REMEDIES = {
    "missing": "required key is missing; add it",
    "union_tag_not_found": "key 'kind' is missing; add it",
}


def enormous(values: Any, path: str = "") -> Iterator[str]:
    """Every whole number of a recipe that no machine can count to, as ``key: what is wrong``."""
    if isinstance(values, int) and abs(values) > _largest(path):
        yield f"{path}: found {shown(values)}; use at most {_largest(path)}"
    elif isinstance(values, dict | list | tuple):
        named = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in named:
            yield from enormous(value, f"{path}.{name}" if path else str(name))


def _largest(path: str) -> int:
    return _LARGEST_SEED if "seed" in path else _LARGEST


def explain(fault: ErrorDetails, values: dict[str, Any], schema: Schema) -> str:
    """One line: path, what was found, what is allowed.

    Args:
        fault: as pydantic reports it.
        values: the recipe that has it.
        schema: gives the JSON schema of recipes.
    """
    keys = _key_path(fault["loc"], values)
    path = ".".join(keys) or "recipe"
    kind = fault["type"]
    if "image_size" in keys[:-1]:
        path = path[: path.index("image_size")] + "image_size"
        return f"{path}: give pixels per side, or height and width such as [256, 384]"
    if kind in _REMEDIES:
        return f"{path}: {_REMEDIES[kind]}"
    if kind == "extra_forbidden":
        return f"{path}: unknown key{_suggestion(fault['loc'], keys, schema)}"
    if kind == "union_tag_invalid":
        context = fault.get("ctx", {})
        known = f"found '{context.get('tag')}', allowed {context.get('expected_tags') or 'none'}"
        hint = "" if path == "recipe" else " (kinds of plug-ins: install them, or --plugin FILE)"
        return f"{path}.kind: {known}{hint}"
    message = fault["msg"].removeprefix("Value error, ")
    found = fault["input"]
    if kind == "value_error" or isinstance(found, dict | list):
        return f"{path}: {message}"
    return f"{path}: found {shown(found)}; {message[0].lower()}{message[1:]}"


def _key_path(location: tuple[int | str, ...], values: Any) -> list[str]:
    """Keys as the user wrote them: pydantic also lists the union tags it passed through."""
    keys: list[str] = []
    here = values
    for part in location:
        if isinstance(here, dict) and part not in here and here.get("kind") == part:
            continue
        keys.append(str(part))
        if isinstance(here, dict):
            here = here.get(part)
        elif isinstance(here, list | tuple) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None
    return keys


def _suggestion(location: tuple[int | str, ...], keys: list[str], schema: Schema) -> str:
    allowed = _allowed_keys(location[:-1], schema())
    known = f"; allowed here: {', '.join(sorted(allowed))}" if allowed else "; remove it"
    if keys[-1] in _OTHER_NAMES:
        return f"; {_OTHER_NAMES[keys[-1]]}{known}"
    near = difflib.get_close_matches(keys[-1], allowed, n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else known


def _allowed_keys(location: tuple[int | str, ...], schema: dict[str, Any]) -> list[str]:
    """Keys the schema allows at a location (with union tags, as pydantic reports it)."""
    definitions = schema.get("$defs", {})
    node: dict[str, Any] = schema
    for part in location:
        node = _step_into(node, part, definitions)
    node = _deref(node, definitions)
    options = [_deref(option, definitions) for option in node.get("anyOf", [node])]
    return [key for option in options for key in option.get("properties", {})]


def _deref(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = definitions[node["$ref"].rsplit("/", 1)[-1]]
    return node


def _step_into(node: dict[str, Any], part: int | str, definitions: dict[str, Any]) -> dict:
    """Follow one part of a location: a property, a union tag, an optional or a mapping."""
    node = _deref(node, definitions)
    mapping = node.get("discriminator", {}).get("mapping", {})
    if part in mapping:
        return {"$ref": mapping[part]}
    for option in node.get("anyOf", []):
        found = _step_into(option, part, definitions)
        if found:
            return found
    if part in node.get("properties", {}):
        return node["properties"][part]
    extra = node.get("additionalProperties")
    return extra if isinstance(extra, dict) else {}
