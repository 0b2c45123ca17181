"""Faults that cosmic-ray does not know: something left out, or the opposite function called.

They are the kinds that went unnoticed in this project: a sync, a check or a copy that is missing,
an option that is not handed on, the smallest taken for the largest.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

OPPOSITES = {"min": "max", "max": "min", "any": "all", "all": "any", "floor": "ceil"}


@dataclass(frozen=True)
class Change:
    """A piece of the source and what stands there instead."""

    operator: str
    line: int
    column: int
    source: str


class _Text:
    """Source with positions as `ast` counts them: lines from 1, columns in UTF-8 bytes."""

    def __init__(self, source: str) -> None:
        self._data = source.encode()
        self._starts = [0]
        for line in self._data.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))

    def place(self, line: int, column: int) -> int:
        return self._starts[line - 1] + column

    def without(self, start: int, end: int, instead: str) -> str:
        """Later lines keep their numbers."""
        lines = self._data[start:end].count(b"\n")
        return (self._data[:start] + instead.encode() + self._data[end:]).decode() + "\n" * lines

    def of(self, node: ast.expr | ast.stmt | ast.keyword, instead: str) -> str:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self.place(node.lineno, node.col_offset)
        return self.without(start, self.place(node.end_lineno, node.end_col_offset), instead)


def changes(source: str) -> Iterator[Change]:
    """Every such fault that can be put into a module."""
    text, tree = _Text(source), ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.AugAssign():
                yield _change("RemoveStatement", node, text.of(node, "pass"))
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                yield _change("RemoveStatement", node, text.of(node, "pass"))
            case ast.Call(func=ast.Name(id=name) as called) if name in OPPOSITES:
                yield _change("CallOpposite", called, text.of(called, OPPOSITES[name]))
            case ast.Call(func=ast.Attribute(attr=name) as called) if name in OPPOSITES:
                whole = ast.unparse(called.value) + "." + OPPOSITES[name]
                yield _change("CallOpposite", called, text.of(called, whole))
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg is not None and not _is_default(node, keyword):
                    yield _change("DropArgument", keyword, _dropped(text, node, keyword))


def _is_default(call: ast.Call, keyword: ast.keyword) -> bool:
    """Whole numbers are int64 where nothing is said, on every machine that the tests run on."""
    return (
        keyword.arg == "dtype"
        and ast.unparse(call.func) in ("np.arange", "torch.arange")
        and (ast.unparse(keyword.value) in ("np.int64", "torch.int64"))
    )


def _dropped(text: _Text, call: ast.Call, keyword: ast.keyword) -> str:
    """The call without that argument: its parts are written again on one line."""
    kept = ast.Call(call.func, call.args, [k for k in call.keywords if k is not keyword])
    return text.of(call, ast.unparse(ast.fix_missing_locations(kept)))


def _change(operator: str, node: ast.expr | ast.stmt | ast.keyword, source: str) -> Change:
    return Change(operator, node.lineno, node.col_offset, source)
