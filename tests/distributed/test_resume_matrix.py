"""A checkpoint of any ZeRO stage and world size goes on anywhere (thinned; all cells by hand)."""

from pathlib import Path

import pytest

from tests.support.resume_cells import measure


@pytest.mark.slow
def test_resuming_elsewhere_gives_the_losses_of_the_run_that_went_on(tmp_path: Path) -> None:
    """Stages 2 and 3 at worlds 1 and 2, each loaded at each: 16 cells."""
    report = measure(str(tmp_path), worlds=[1, 2], stages=[2, 3])
    assert report.cells == 16
    assert report.unequal == []
    assert max(report.worst.values()) < 1e-6, report.lines()
