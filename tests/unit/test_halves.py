"""The suite in two processes counts what both found."""

from __future__ import annotations

import pytest

from tests import halves

FIRST = "..F.\nFAILED a.py::test\n1 failed, 3 passed, 2 skipped in 12.50s\n"
SECOND = ".....\n5 passed, 1 warning in 99.10s (0:01:39)\n"


def test_counts_are_added_and_the_longer_time_is_shown() -> None:
    assert halves._together(FIRST, SECOND) == "both: 1 failed, 8 passed, 2 skipped in 99.10s"
    assert halves._together("", "") == "both: no tests ran in 0.00s"


def test_every_folder_of_tests_belongs_to_one_half() -> None:
    folders = {path.name for path in halves.TESTS.iterdir() if (path / "__init__.py").exists()}
    chosen = {path.rpartition("/")[2] for path in halves.computing()}
    assert not chosen & set(halves.WAITING)
    assert folders - chosen - set(halves.WAITING) == {"benchmarks", "support", "mutation"}


@pytest.mark.parametrize(
    ("codes", "expected"), [((0, 0), 0), ((0, 5), 0), ((5, 5), 5), ((1, 0), 1), ((2, 5), 2)]
)
def test_no_test_in_one_half_is_no_failure(
    codes: tuple[int, int], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended:
        def __init__(self, command: list[str], **_: object) -> None:
            assert command[-1].endswith("end_to_end")

        def wait(self) -> int:
            return codes[1]

    monkeypatch.setattr(halves.subprocess, "Popen", Ended)
    monkeypatch.setattr(halves, "_shown", lambda *_: codes[0])
    assert halves.main(["-k", "x"]) == expected
