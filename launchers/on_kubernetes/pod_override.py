"""Raw pod templates of a profile: checked against Kubernetes' own fields, merged by name."""

from __future__ import annotations

import copy
import re
from typing import Any

PodOverride = dict[str, Any]
"""A pod template with Kubernetes' spelling; None removes a field."""
_MERGE_KEYS = ("name", "mountPath", "containerPort", "topologyKey")
"""Lists of mappings are merged by the first of these that all their items have."""
_OWN_LABELS = re.compile(r"(ray\.io|ifsq\.dev|app\.kubernetes\.io)/")


def check_pod_override(override: PodOverride, where: str) -> None:
    """Check the names of all fields, at any depth.

    Args:
        override: the raw template.
        where: its key in the profile, for messages.

    Raises:
        ValueError: a field Kubernetes does not have, or one the program needs for itself.
    """
    for label in (override.get("metadata") or {}).get("labels") or {}:
        if _OWN_LABELS.match(label):
            raise ValueError(f"{where}: label {label} is set by the program itself; leave it out")
    _check(override, "V1PodTemplateSpec", where)


def _check(value: Any, kind: str, where: str) -> None:
    if value is None:
        return
    if match := re.fullmatch(r"(?:list|List)\[(.+)\]", kind):
        if not isinstance(value, list):
            raise ValueError(f"{where}: a list is needed, found {value!r}")
        for index, item in enumerate(value):
            _check(item, match[1], f"{where}[{index}]")
        return
    types, names = _fields(kind)
    if types is None:
        return
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a mapping is needed, found {value!r}")
    known = {spelling: types[field] for field, spelling in names.items()}
    for key, item in value.items():
        if key not in known:
            near = ", ".join(sorted(known))
            raise ValueError(f"{where}.{key}: Kubernetes has no such field; it has: {near}"[:400])
        _check(item, known[key], f"{where}.{key}")


def _fields(kind: str) -> tuple[dict[str, str] | None, dict[str, str]]:
    """Types and spellings of an API object's fields; None for plain values and maps."""
    try:
        from kubernetes import client
    except ImportError:
        return None, {}  # the API server checks it then
    model = getattr(client, kind, None)
    types = getattr(model, "openapi_types", None)
    return (types, model.attribute_map) if types and model is not None else (None, {})


def merge(base: Any, over: Any) -> Any:
    """A manifest with another laid over it: mappings by key, lists of named things by name.

    Other lists and plain values are replaced; None removes.
    """
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            if value is None:
                merged.pop(key, None)
            else:
                merged[key] = merge(base.get(key), value)
        return merged
    if isinstance(base, list) and isinstance(over, list):
        return _merge_lists(base, over)
    return copy.deepcopy(over)


def _merge_lists(base: list[Any], over: list[Any]) -> list[Any]:
    items = base + over
    key = next((k for k in _MERGE_KEYS if all(isinstance(i, dict) and k in i for i in items)), None)
    if key is None or not over:
        return copy.deepcopy(over)
    merged = {item[key]: item for item in base}
    for item in over:
        merged[item[key]] = merge(merged.get(item[key]), item)
    return list(merged.values())
