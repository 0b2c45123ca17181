"""Kernel distance (KID): against its definition in float64, and what it is for."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ifsq_train.evaluation.image_counts import enough_images
from ifsq_train.evaluation.kernel_distance import kernel_distance


def rows(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 6, generator=torch.Generator().manual_seed(seed)) + shift


def by_definition(real: Tensor, fake: Tensor) -> float:
    def kernel(x: Tensor, y: Tensor) -> float:
        return float((x.double() @ y.double() / len(x) + 1) ** 3)

    within = sum(
        sum(kernel(x, y) for x, y in itertools.permutations(part, 2))
        / (len(part) * (len(part) - 1))
        for part in (real, fake)
    )
    across = sum(kernel(x, y) for x in real for y in fake) / (len(real) * len(fake))
    return within - 2 * across


def test_it_is_the_unbiased_estimate() -> None:
    real, fake = rows(9, 1), rows(7, 2, shift=0.3)
    assert kernel_distance(real, fake) == pytest.approx(by_definition(real, fake), rel=1e-12)


def test_few_and_many_images_of_one_distribution_are_near_zero() -> None:
    """20 draws of 40 images: their mean is within four standard errors of 0."""
    values = torch.tensor([kernel_distance(rows(40, s), rows(40, 100 + s)) for s in range(20)])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 20**0.5
    assert kernel_distance(rows(400, 1), rows(400, 2, shift=1.0)) > 10 * float(values.std())


def test_blocks_do_not_change_the_value() -> None:
    real, fake = rows(5000, 3), rows(2100, 4)
    halves = (kernel_distance(real, fake), kernel_distance(real.flip(0), fake.flip(0)))
    assert halves[0] == pytest.approx(halves[1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("real", "fake"), [(rows(1, 0), rows(5, 0)), (rows(5, 0), torch.zeros(5, 7))]
)
def test_unusable_sets_are_refused(real: Tensor, fake: Tensor) -> None:
    with pytest.raises(ValueError, match=r"rows of each|different widths"):
        kernel_distance(real, fake)


@pytest.mark.parametrize(
    ("count", "features", "enough"), [(20, 8, False), (128, 8, True), (2047, 2048, False)]
)
def test_a_frechet_distance_of_few_images_is_left_out(
    count: int, features: int, enough: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert enough_images("frechet_distance", count, features) is enough
    assert ("left out" in caplog.text) is not enough
