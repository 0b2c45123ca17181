"""What a generator speaks, as it is stored."""

from __future__ import annotations

from typing import Any

import pytest

from ifsq_train.models.generator_spec import MAX_GRID, GeneratorSpec


def test_what_is_stored_is_read_back() -> None:
    spec = GeneratorSpec((2, 3), (81, 81), 4, "ab", (0.0,) * 4, (1.0,) * 4)
    assert GeneratorSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("grid", [[0, 1], [1, MAX_GRID + 1], [10**30, 1], [1.5, 2], ["4", 4], [4]])
def test_a_grid_that_no_network_has_is_refused(grid: Any) -> None:
    with pytest.raises(ValueError):
        GeneratorSpec.from_dict({"grid": grid})
