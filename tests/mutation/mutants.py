"""The mutants of a module, and a seeded sample of them."""

from __future__ import annotations

import ast
import random
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tests.mutation import operators
from tests.mutation.equivalents import changes_nothing
from tests.support.repository import REPOSITORY

WORDING = {"debug", "info", "warning", "error", "exception", "echo", "print"}
"""Functions whose arguments are for people."""


@dataclass(frozen=True)
class Mutant:
    """One fault in one module.

    Attributes:
        module: Path from the checkout.
        line, column: Where it is, from 1 and from 0.
        operator: What was done there.
        source: The module with the fault in it.
        before, after: The first line that differs, without its indentation.
    """

    module: str
    line: int
    column: int
    operator: str
    source: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.module}:{self.line}:{self.column} {self.operator}"

    @property
    def key(self) -> tuple[str, ...]:
        """What names it in the list of equivalents: stays the same when lines move."""
        return self.module, self.before, self.after


Place = tuple[str, int, int]
"""Module, line, column."""


@dataclass(frozen=True)
class Candidate:
    """A mutant that is not made yet: making one takes longer than finding a thousand places."""

    place: Place
    operator: str
    make: Callable[[str], str | None]
    """From the module's source."""

    def mutant(self) -> Mutant | None:
        """None where nothing that anybody could see would change, or nothing could run."""
        source = (REPOSITORY / self.place[0]).read_text()
        mutated = self.make(source)
        if mutated is None or not _compiles(mutated):
            return None
        before, after = _difference(source, mutated)
        line = source.splitlines()[self.place[1] - 1]
        if before == after or changes_nothing(before, after, line, self.operator):
            return None
        return Mutant(*self.place, self.operator, mutated, before, after)


def candidates(module: str) -> dict[Place, list[Candidate]]:
    """All by place, those left out which change only an annotation or a message."""
    source = (REPOSITORY / module).read_text()
    skipped = _spans(ast.parse(source), "/config/" in module)
    found: dict[Place, list[Candidate]] = defaultdict(list)
    for operator, line, column, make in _all(source):
        if not any(start <= (line, column) < end for start, end in skipped):
            place = (module, line, column)
            found[place].append(Candidate(place, operator, make))
    return dict(sorted(found.items()))


def sample(modules: list[str], count: int, seed: int, known: set[tuple]) -> list[Mutant]:
    """That many places, drawn evenly over the modules' places; at each one of its mutants."""
    places = [at for module in modules for at in candidates(module).values()]
    random_ = random.Random(seed)
    random_.shuffle(places)
    chosen: list[Mutant] = []
    for at in places:
        if len(chosen) == count:
            break
        for candidate in random_.sample(at, len(at)):
            mutant = candidate.mutant()
            if mutant is not None and mutant.key not in known:
                chosen.append(mutant)
                break
    return sorted(chosen, key=lambda mutant: (mutant.module, mutant.line, mutant.column))


def _all(source: str) -> Iterator[tuple[str, int, int, Callable[[str], str | None]]]:
    import parso
    from cosmic_ray.ast import ast_nodes

    nodes = list(ast_nodes(parso.parse(source)))
    for operator in _cosmic_ray():
        positions = [at for node in nodes for at, _ in operator.mutation_positions(node)]
        for number, (line, column) in enumerate(positions):
            make = partial(_by_cosmic_ray, operator=operator, number=number)
            yield type(operator).__name__, line, column, make
    for change in operators.changes(source):
        yield change.operator, change.line, change.column, lambda _, change=change: change.source


def _by_cosmic_ray(source: str, operator: Any, number: int) -> str | None:
    from cosmic_ray.mutating import mutate_code

    try:
        return mutate_code(source, operator, number)
    except AttributeError:  # its exception replacer knows no dotted names
        return None


@cache
def _cosmic_ray() -> list:
    from cosmic_ray.plugins import get_operator, operator_names

    classes = [get_operator(name) for name in operator_names()]
    return [kind() for kind in classes if not kind.arguments()]


def _compiles(source: str) -> bool:
    try:
        ast.parse(source)
    except SyntaxError:
        return False
    return True


def _difference(source: str, mutated: str) -> tuple[str, str]:
    for before, after in zip(source.splitlines(), mutated.splitlines(), strict=False):
        if before != after:
            return before.strip(), after.strip()
    return "", ""


def _spans(tree: ast.Module, pydantic: bool) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """(first, behind last) of annotations, messages and what is run by type checkers only."""
    left_out: list[ast.AST] = []
    for node in ast.walk(tree):
        if not pydantic:
            left_out += [getattr(node, name, None) for name in ("annotation", "returns")]  # type: ignore[arg-type]
        match node:
            case ast.Raise(exc=ast.Call(args=args)):
                left_out += args
            case ast.Expr(value=ast.Call(func=ast.Attribute(attr=name) | ast.Name(id=name))) if (
                name in WORDING
            ):
                left_out.append(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")) | ast.Assert():
                left_out.append(node)
    return [
        ((n.lineno, n.col_offset), (n.end_lineno, n.end_col_offset))  # type: ignore[attr-defined]
        for n in left_out
        if isinstance(n, ast.AST)
    ]


def modules_below(prefixes: list[str]) -> list[str]:
    """Python files at or below paths from the checkout."""
    found: set[Path] = set()
    for prefix in prefixes:
        path = REPOSITORY / prefix
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return sorted(str(path.relative_to(REPOSITORY)) for path in found)
