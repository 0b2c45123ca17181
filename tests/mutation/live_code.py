"""Put a fault into functions of a running process, without importing anything again."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator
from types import CodeType, FunctionType

Codes = dict[tuple[str, int], CodeType]
"""New code by qualified name and the first line of the old."""

IN_FUNCTIONS = 0x1 | 0x2
"""CO_OPTIMIZED and CO_NEWLOCALS: bodies of modules and classes have neither."""


def changed_functions(path: str, source: str, mutated: str) -> tuple[list[str], Codes] | None:
    """Names of the functions that the fault is in, innermost first, and all new code.

    None where the fault is in code that runs when the module is imported: then it has to be
    imported again. No names where both compile to the same.
    """
    old, new = _by_name(compile(source, path, "exec")), _by_name(compile(mutated, path, "exec"))
    if old.keys() != new.keys():
        return None
    changed = [key for key in old if _own(old[key]) != _own(new[key])]
    if any(old[key].co_flags & IN_FUNCTIONS != IN_FUNCTIONS for key in changed):
        return None
    if any(old[key].co_freevars != new[key].co_freevars for key in new):
        return None
    names = {key[0] for key in changed}
    outer = {name.split(".<locals>")[0] for name in names}
    ordered = [*sorted(names, key=len, reverse=True), *sorted(outer - names)]
    return ordered, {(key[0], old[key].co_firstlineno): new[key] for key in old}


def replace(path: str, codes: Codes) -> int:
    """Give every living function of a file its new code; returns how many there were."""
    count = 0
    for found in gc.get_objects():
        if isinstance(found, FunctionType) and found.__code__.co_filename == path:
            code = codes.get((found.__code__.co_qualname, found.__code__.co_firstlineno))
            if code is not None:
                found.__code__ = code
                count += 1
    return count


def _by_name(code: CodeType) -> dict[tuple[str, int], CodeType]:
    """By qualified name and how many of that name came before: properties have two."""
    counts: dict[str, int] = defaultdict(int)
    found: dict[tuple[str, int], CodeType] = {}
    for inner in sorted(_all(code), key=lambda inner: inner.co_firstlineno):
        found[inner.co_qualname, counts[inner.co_qualname]] = inner
        counts[inner.co_qualname] += 1
    return found


def _all(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _all(constant)


def _own(code: CodeType) -> tuple:
    """What the function does itself, without the functions in it and without line numbers."""
    constants = tuple(
        (type(c), repr(c)) if not isinstance(c, CodeType) else c.co_qualname for c in code.co_consts
    )
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_exceptiontable
