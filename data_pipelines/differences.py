"""How two sets of settings differ, key by key."""

from collections.abc import Mapping
from typing import Any

_LONGEST = 60
ABSENT = "not set"


def flat(values: Any, key: str = "") -> dict[str, Any]:
    """Leaves of nested mappings and lists by dotted key; empty ones are leaves."""
    if isinstance(values, Mapping) and values:
        items = [(str(name), value) for name, value in values.items()]
    elif isinstance(values, list | tuple) and values:
        items = [(str(number), value) for number, value in enumerate(values)]
    else:
        return {key: values}
    found: dict[str, Any] = {}
    for name, value in items:
        found |= flat(value, f"{key}.{name}" if key else name)
    return found


def changed_keys(was: Any, now: Any) -> dict[str, tuple[Any, Any]]:
    """Leaves whose values differ, with both values; a leaf that only one has is `ABSENT` there."""
    old, new = flat(was), flat(now)
    return {
        key: (old.get(key, ABSENT), new.get(key, ABSENT))
        for key in [*new, *(key for key in old if key not in new)]
        if old.get(key, ABSENT) != new.get(key, ABSENT)
    }


def as_text(changed: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """One text per key: ``key: was -> is``."""
    return [f"{key}: {_short(was)} -> {_short(now)}" for key, (was, now) in changed.items()]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
