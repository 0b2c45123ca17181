"""``${key}`` in recipes: how much text it stands for, before anything is put together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from data_pipelines.errors import UserError

MAX_CHARACTERS = 1 << 20
MAX_NESTED = 16
_BRACKET = re.compile(r"\$\{|\}")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][^${}:]*)\}")


def refuse_nested(text: str, where: str) -> None:
    """Raise UserError where references lie so deeply in each other that parsing takes minutes.

    Args:
        text: unparsed.
        where: what messages call it.
    """
    depth = 0
    for found in _BRACKET.finditer(text):
        depth = depth + 1 if found[0] == "${" else max(0, depth - 1)
        if depth > MAX_NESTED:
            raise UserError(
                f"{where}: more than {MAX_NESTED} references ${{...}} in each other; write it out"
            )


def refuse_large(values: Any, where: str) -> None:
    """Raise UserError where references of references stand for more than a mebibyte of text.

    References that lead in a circle count once; resolving them is an error of its own.

    Args:
        values: a recipe's, unresolved.
        where: what messages call it.
    """
    texts = dict(_texts(values, ""))
    sizes: dict[str, int] = {}

    def size(key: str) -> int:
        if key not in sizes:
            sizes[key] = 0
            inside = [key] if key in texts else [k for k in texts if k.startswith(f"{key}.")]
            found = [_REFERENCE.findall(texts[one]) for one in inside]
            total = sum(len(texts[one]) for one in inside)
            sizes[key] = total + sum(size(name.strip()) for names in found for name in names)
        return sizes[key]

    for key in texts:
        if size(key) > MAX_CHARACTERS:
            raise UserError(
                f"{where}: {key}: stands for more than {MAX_CHARACTERS} characters through"
                " references of references; write it out"
            )


def _texts(values: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict | list):
        named = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in named:
            yield from _texts(value, f"{key}.{name}" if key else str(name))
