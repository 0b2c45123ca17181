"""Mutants that change nothing that anybody could see: found by the sample, read, and accepted."""

from __future__ import annotations

import json
import re
from pathlib import Path

FILE = Path(__file__).with_name("equivalents.json")


def accepted() -> set[tuple[str, str, str]]:
    """(module, line before, line after) of each."""
    entries = json.loads(FILE.read_text())
    return {(e["module"], e["before"], e["after"]) for e in entries}


_NOT_DRAWN = [
    r"(\bzip\(.*), strict=(True|False)",  # an assertion, as those that are written out
    r"(^@dataclass\(.*)frozen=(True|False)",  # nobody writes to them, pyright sees to it
    r"(^|[ (])[*/](?=[,)])",  # no operator, but the end of a signature's positions
]
_MARKS = {"@override", "@abstractmethod", "@final", "@runtime_checkable"}


def changes_nothing(before: str, after: str, line: str, operator: str) -> bool:
    """Whether no program that is right could tell: such mutants are not drawn.

    Args:
        before, after: the first line that differs.
        line: the line of the mutant's place.
        operator: what was done there.
    """
    if operator == "RemoveDecorator" and line.strip() in _MARKS:
        return True
    pair = [text.replace("'", '"') for text in (before, after)]
    for pattern in _NOT_DRAWN:
        shorter = [re.sub(pattern, r"\1", text) for text in pair]
        if shorter[0] == shorter[1]:
            return True
    return False
