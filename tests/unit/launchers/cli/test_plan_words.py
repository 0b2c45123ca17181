"""What `ifsq plan` prints for people."""

from __future__ import annotations

import pytest

from launchers.cli.plan import duration


@pytest.mark.parametrize(
    ("days", "shown"),
    [(12.0, "12 days"), (0.5, "12 hours"), (0.01, "14.4 minutes"), (1e-5, "0.864 seconds")],
)
def test_times_are_in_a_unit_that_says_something(days: float, shown: str) -> None:
    assert duration(days) == shown
