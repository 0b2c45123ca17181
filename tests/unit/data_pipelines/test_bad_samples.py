"""The limit on bad samples holds over all starts of a run, and counts each once."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.errors import DataError


def bad(number: int) -> BadSample:
    return BadSample("a.tar", f"image{number}", number, "cut")


def test_a_second_start_goes_on_counting(tmp_path: Path) -> None:
    file = tmp_path / "logs" / "quarantine.jsonl"
    first = ErrorBudget(3, file)
    for number in (0, 1, 0):
        first.record(bad(number))
    with file.open("a") as half:
        half.write('{"shard": "a.tar", "key": "ima')  # killed while writing
    second = ErrorBudget(3, file)
    assert second.num_bad == 2
    assert second.bad_samples == []
    second.record(bad(1))
    assert second.num_bad == 2
    second.record(bad(2))
    with pytest.raises(DataError, match="4 bad samples are more than max_bad_samples=3"):
        second.record(bad(3))
    # Nor is what was noted behind the half line lost with it.
    assert ErrorBudget(3, file).num_bad == 4


def test_none_is_none() -> None:
    budget = ErrorBudget(0)
    with pytest.raises(DataError, match="1 bad samples are more than max_bad_samples=0; the last"):
        budget.record(bad(0))
