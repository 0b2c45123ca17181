"""The tool that puts faults in: what it makes of a source, and that a fault reaches what runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.mutation.equivalents import changes_nothing
from tests.mutation.known_faults import CAUGHT_BY, FAULTS
from tests.mutation.live_code import changed_functions, replace
from tests.mutation.operators import changes
from tests.support.repository import REPOSITORY

SOURCE = '''"""A module."""

LIMIT = 3


def smallest(values, check=True):
    if check and not values:
        raise ValueError("no values")
    found = min(values, key=abs)
    return found


class Counter:
    """Counts."""

    def __init__(self):
        self.count = 0

    @property
    def double(self):
        return [self.count + step for step in (self.count,)][0]

    @double.setter
    def double(self, value):
        self.count = value // 2
'''


def test_what_is_left_out_or_exchanged() -> None:
    found = {(change.operator, change.line): change.source for change in changes(SOURCE)}
    assert set(found) == {
        ("RemoveStatement", 8),
        ("RemoveStatement", 17),
        ("RemoveStatement", 25),
        ("CallOpposite", 9),
        ("DropArgument", 9),
    }
    assert "found = max(values, key=abs)" in found["CallOpposite", 9]
    assert "found = min(values)\n" in found["DropArgument", 9]
    assert "        pass\n    found" in found["RemoveStatement", 8]
    assert all(len(text.splitlines()) == len(SOURCE.splitlines()) for text in found.values())


def load(path: Path):
    path.write_text(SOURCE)
    spec = importlib.util.spec_from_file_location("mutated", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_living_function_takes_the_fault(tmp_path: Path) -> None:
    """Also where another module has imported it by name, and in a property of two functions."""
    path = tmp_path / "mutated.py"
    module = load(path)
    imported, counter = module.smallest, module.Counter()
    mutated = SOURCE.replace("min(values", "max(values").replace("value // 2", "value")
    changed = changed_functions(str(path), SOURCE, mutated)
    assert changed is not None
    assert set(changed[0]) == {"smallest", "Counter.double"}
    assert replace(str(path), changed[1]) > 1
    assert imported([1, 5]) == 5
    counter.double = 4
    assert counter.count == 4
    assert counter.double == 8


def test_a_fault_outside_functions_needs_a_new_import(tmp_path: Path) -> None:
    for old, new in [("LIMIT = 3", "LIMIT = 4"), ("check=True", "check=False")]:
        assert changed_functions("x.py", SOURCE, SOURCE.replace(old, new)) is None
    unchanged = changed_functions("x.py", SOURCE, SOURCE)
    assert unchanged is not None
    assert unchanged[0] == []


def test_every_known_fault_has_its_test() -> None:
    """And is in its module still; the tests themselves are asked by `--known`."""
    assert {fault.what for fault in FAULTS} == set(CAUGHT_BY)
    for fault in FAULTS:
        assert fault.mutant() is not None, f"{fault.what}: not, or not once, in {fault.module}"
        place, _, name = CAUGHT_BY[fault.what].partition("::")
        assert f"def {name}(" in (REPOSITORY / "tests/unit" / place).read_text(), fault.what


@pytest.mark.parametrize(
    ("before", "after", "nothing"),
    [
        ("for a in zip(b, c, strict=True):", "for a in zip(b, c, strict=False):", True),
        ('zip(b, "c", strict=True)', "zip(b, 'c')", True),
        ("load(state, strict=True)", "load(state, strict=False)", False),
        ("@dataclass(frozen=True)", "@dataclass(frozen=False)", True),
        ("self.frozen = f(frozen=True)", "self.frozen = f(frozen=False)", False),
        ("def f(a: int, *, b: int) -> None:", "def f(a: int, /, b: int) -> None:", True),
        ("return a * (b)", "return a / (b)", False),
    ],
)
def test_what_no_program_could_tell_is_not_drawn(before: str, after: str, nothing: bool) -> None:
    assert changes_nothing(before, after, before, "Any") == nothing


def test_marks_for_readers_are_not_drawn() -> None:
    assert changes_nothing("", "def f():", "    @override", "RemoveDecorator")
    assert not changes_nothing("", "def f():", "    @classmethod", "RemoveDecorator")
