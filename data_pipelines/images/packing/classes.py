"""Which number a class has: from a file the user gives, instead of from the sorted names."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipelines.documents import parse_json, read_file, text_of
from data_pipelines.errors import UserError

MAX_CLASSES = 1_000_000
MAX_CLASS_MAP_BYTES = 64 << 20
_MAX_DIGITS = 20
_SPACE = b" \t\r\n\xef\xbb\xbf"
_IDENTIFIER = re.compile(r"\d")
"""In the first word of a line: `n01440764 tench`, but not `golden retriever`."""


_NUMBER_FIRST = re.compile(r"(\d{1,9})\s*[\t,:; ]\s*(.+)")
_DIGITS = "0123456789"
_MARKS = ",:;|="
"""Between a name and the number after it, beside spaces and tabs."""
_NUMBER_FIELDS = ("id", "index", "label", "class_id")


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

    `*.json` holds a list of names in order, an object of numbers by name (numbers may be text), or
    of names by number (also as `{"0": ["n01440764", "tench"]}`, and inside `id2label`, `label2id`,
    `names` or `class_to_idx`). Any other file has one class a line, in order: the source name,
    then, after a tab, optionally the name to record. Without tabs, the source name ends at the
    first space if that makes every name different and looks like an identifier (the layout of
    ImageNet's `LOC_synset_mapping.txt`); else the whole line is the name. Where all lines begin or
    end with a number, and these are 0 to n-1 (`0 cat`, `1: dog`, `cat,0`), they are the numbers,
    in whatever order. Lines that begin with `# ` are left out, and quotes around a line.

    Raises:
        UserError: no such file, not of this form, a name twice, or numbers with gaps.
    """
    data = read_file(path, MAX_CLASS_MAP_BYTES)
    is_json = path.suffix.lower() == ".json" or data.lstrip(_SPACE)[:1] in (b"{", b"[")
    pairs = _from_json(path, data) if is_json else _from_lines(_text(path, data))
    numbers = {source: number for source, number, _ in pairs}
    if not pairs or len(numbers) < len(pairs):
        times = Counter(source for source, _, _ in pairs)
        twice = next((name for name, count in times.items() if count > 1), "")
        what = f"names the class {twice[:60]!r} twice" if pairs else "is empty"
        raise UserError(f"class map {path} {what}; give every class once, one a line")
    if len(pairs) > MAX_CLASSES:
        raise UserError(
            f"class map {path} has {len(pairs)} classes, at most {MAX_CLASSES} are read"
        )
    names: dict[int, str] = {}
    for _, number, name in pairs:
        names.setdefault(number, name)
    if sorted(names) != list(range(len(names))):
        raise UserError(
            f"class map {path} has the numbers {min(names)} to {max(names)} with gaps;"
            f" use all of 0 to {len(names) - 1}"
        )
    return ClassMap(numbers, tuple(names[number] for number in range(len(names))))


def _text(path: Path, data: bytes) -> str:
    try:
        text = text_of(data)
    except UnicodeDecodeError as error:
        raise UserError(
            f"class map {path} is not text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(f"class map {path} has NUL characters; give a text file")
    return text


def _from_lines(text: str) -> list[tuple[str, int, str]]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [_unquoted(line) for line in lines if not line.startswith("# ")]
    numbered = [match.groups() for line in lines if (match := _NUMBER_FIRST.fullmatch(line))]
    if _are_all_numbers([number for number, _ in numbered], len(lines)):
        lines = [name for _, name in sorted(numbered, key=lambda pair: int(pair[0]))]
    ended = [pair for line in lines if (pair := _number_last(line))]
    if _are_all_numbers([number for _, number in ended], len(lines)):
        names = [_unquoted(name) for name, _ in ended]
        if len(set(names)) == len(names):
            return [(name, int(ended[at][1]), name) for at, name in enumerate(names)]
    parts = [_split_line(line) for line in lines]
    if not any("\t" in line for line in lines):
        sources = {first for first, _ in parts}
        if len(sources) < len(lines) or not all(_IDENTIFIER.search(name) for name in sources):
            parts = [(line, "") for line in lines]
    return [(first, number, rest or first) for number, (first, rest) in enumerate(parts)]


def _number_last(line: str) -> tuple[str, str] | None:
    """A name and the number after it. By hand: a pattern takes hours for a line of many spaces."""
    head = line.rstrip(_DIGITS)
    number, name = line[len(head) :], head.rstrip()
    if not 0 < len(number) < 10 or not name:
        return None
    if name[-1] in _MARKS and (before := name[:-1].rstrip()):
        return before, number
    return (name, number) if len(name) < len(head) else None


def _unquoted(text: str) -> str:
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"
    return text[1:-1] if quoted else text


def _are_all_numbers(numbers: Sequence[str], count: int) -> bool:
    """Whether these are 0 to count - 1, in any order."""
    return len(numbers) == count and sorted(map(int, numbers)) == list(range(count))


def _split_line(line: str) -> tuple[str, str]:
    """At the first tab, or else the first space."""
    first, _, rest = line.partition("\t") if "\t" in line else line.partition(" ")
    return first.strip(), rest.strip()


def _from_json(path: Path, data: bytes) -> list[tuple[str, int, str]]:
    content = parse_json(data, f"class map {path}", unique_keys=True)
    for key in ("id2label", "label2id", "class_to_idx", "names", "classes", "categories"):
        if isinstance(content, dict) and isinstance(content.get(key), dict | list):
            content = content[key]
            break
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        field = next((name for name in _NUMBER_FIELDS if name in content[0]), "")
        content = {str(one.get(field)): one.get("name") for one in content}
    if isinstance(content, list) and all(isinstance(name, str) for name in content):
        return [(name, number, name) for number, name in enumerate(content)]
    if isinstance(content, dict):
        by_name = {name: _number(value) for name, value in content.items()}
        by_number = {_number(key): _names(value) for key, value in content.items()}
        if content and None not in by_name.values():
            return [(name, number or 0, name) for name, number in by_name.items()]
        if content and None not in by_number and None not in by_number.values():
            return [
                (names[0], number or 0, names[-1])
                for number, names in by_number.items()
                if names is not None
            ]
    raise UserError(
        f"class map {path} is neither a list of names nor an object of numbers by name, or of"
        " names by number; use one"
    )


def _number(value: Any) -> int | None:
    if isinstance(value, str) and value.strip().isdecimal() and value.isascii():
        return int(value) if len(value) < _MAX_DIGITS else None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if type(value) is int and value >= 0 else None


def _names(value: Any) -> list[str] | None:
    """One name, or the name of the source and the one to record."""
    found = [value] if isinstance(value, str) else value
    if isinstance(found, list) and found and all(isinstance(name, str) for name in found):
        return found[:2]
    return None
