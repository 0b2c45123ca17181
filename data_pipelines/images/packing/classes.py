"""Which number a class has: from a file the user gives, instead of from the sorted names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError


@dataclass(frozen=True)
class ClassMap:
    """Numbers by source name (a class folder, a text label), and the names to record.

    `names[n]` is the name of class n in the manifest; several source names may share a number.
    """

    numbers: Mapping[str, int]
    names: Sequence[str]

    def number(self, source_name: str) -> int:
        """The class of a source name.

        Raises:
            UserError: the map does not have it.
        """
        try:
            return self.numbers[source_name]
        except KeyError:
            raise UserError(
                f"class {source_name[:60]!r} is not in the class map, which has"
                f" {len(self.numbers)} classes; add it or leave its images out"
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, for fingerprints."""
        return {"numbers": dict(self.numbers), "names": list(self.names)}


def class_map_of(names: Sequence[str]) -> ClassMap:
    """Names numbered in the order given."""
    return ClassMap({name: number for number, name in enumerate(names)}, tuple(names))


def read_class_map(path: Path) -> ClassMap:
    """A class map from a file.

    `*.json` holds a list of names in order, or an object of numbers by name. Any other file has
    one class a line, in order: the source name, then, after a space or tab, optionally the name
    to record (the layout of ImageNet's `LOC_synset_mapping.txt`).

    Raises:
        UserError: no such file, not of this form, a name twice, or numbers with gaps.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"class map {path} cannot be read ({error}); give a text file") from None
    pairs = _from_json(path, text) if path.suffix == ".json" else _from_lines(text)
    numbers = {source: number for source, number, _ in pairs}
    if not pairs or len(numbers) < len(pairs):
        what = "names a class twice" if pairs else "is empty"
        raise UserError(f"class map {path} {what}; give every class once, one a line")
    names: dict[int, str] = {}
    for _, number, name in pairs:
        names.setdefault(number, name)
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"class map {path} has the numbers {min(names)} to {max(names)} with gaps;"
            f" use all of 0 to {len(names) - 1}"
        )
    return ClassMap(numbers, tuple(names[number] for number in range(len(names))))


def _from_lines(text: str) -> list[tuple[str, int, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = []
    for number, line in enumerate(lines):
        source, *rest = line.split(maxsplit=1)
        found.append((source, number, rest[0] if rest else source))
    return found


def _from_json(path: Path, text: str) -> list[tuple[str, int, str]]:
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError(f"class map {path} is not JSON ({error}); mend it") from None
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, number, name) for number, name in enumerate(content)]
    if isinstance(content, dict) and all(type(number) is int for number in content.values()):
        return [(name, number, name) for name, number in content.items()]
    raise UserError(
        f"class map {path} is neither a list of names nor an object of numbers by name; use one"
    )
