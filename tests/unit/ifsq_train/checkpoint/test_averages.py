"""Averaged weights: how their decay warms up, and how much of the beginning is left in them."""

from __future__ import annotations

import pytest

from ifsq_train.checkpoint.averages import average_decay, initial_share


def test_the_decay_warms_up_to_its_value() -> None:
    assert [average_decay(0.9999, True, n) for n in (0, 8, 90)] == [0.1, 0.5, 91 / 100]
    assert average_decay(0.9, True, 81) == 0.9
    assert average_decay(0.9, True, 79) == pytest.approx(80 / 89)
    assert average_decay(0.9999, False, 0) == 0.9999


@pytest.mark.parametrize(
    ("decay", "warmup"), [(0.9, True), (0.9, False), (0.99, True), (0.0, True)]
)
@pytest.mark.parametrize("updates", [0, 1, 7, 120])
def test_the_initial_share_is_the_product_of_all_decays(
    decay: float, warmup: bool, updates: int
) -> None:
    expected = 1.0
    for before in range(updates):
        expected *= average_decay(decay, warmup, before)
    assert initial_share(decay, warmup, updates) == pytest.approx(expected, rel=1e-12, abs=1e-20)


def test_a_short_run_without_warmup_is_mostly_its_beginning() -> None:
    assert initial_share(0.9999, False, 300) == pytest.approx(0.9704, abs=1e-4)
    assert initial_share(0.9999, True, 300) < 1e-9
