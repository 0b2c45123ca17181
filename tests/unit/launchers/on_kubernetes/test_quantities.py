"""Quantities as Kubernetes reads them: a factor of a thousand or 1,024 is a job that never fits."""

from __future__ import annotations

from decimal import Decimal

import pytest

from data_pipelines.errors import UserError
from launchers.on_kubernetes.quantities import parse_quantity


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4", 4),
        ("500m", Decimal("0.5")),
        ("1.5", Decimal("1.5")),
        ("2k", 2_000),
        ("3M", 3_000_000),
        ("4G", 4 * 10**9),
        ("5T", 5 * 10**12),
        ("2Ki", 2_048),
        ("3Mi", 3 * 1024**2),
        ("16Gi", 16 * 1024**3),
        ("1Ti", 1024**4),
    ],
)
def test_a_quantity(text: str, number: Decimal) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "-1", "1K", "1gi", "1 Gi", "Gi", "1e3", "1.", "4Gib"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(UserError, match="is not a quantity; write for example"):
        parse_quantity(text)
