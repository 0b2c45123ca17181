"""The bound's effect on a normal latent: a recorded audit to its printed digits, and FSQ itself."""

import math

import pytest
import torch

from ifsq_train.evaluation.distribution import (
    Cells,
    bounded_cdf,
    cdf_rmse,
    code_std,
    density_rmse,
    ks_distance,
    level_entropy_bits,
    level_probabilities,
    level_utilisation,
)
from ifsq_train.models.quantizers import FSQ


@pytest.mark.parametrize(
    ("alpha", "ks", "cdf", "density"),
    [
        (1.0, 0.1174, 0.0834, 0.269),
        (1.3, 0.0590, 0.0416, 0.155),
        (1.6, 0.0173, 0.0086, 0.073),
        (1.65, 0.0130, 0.0057, 0.066),
        (1.70, 0.0096, 0.0066, 0.062),
        (2.0, 0.0442, 0.0313, 0.111),
        (2.4, 0.0849, 0.0608, 0.238),
    ],
)
def test_distance_from_uniform(alpha: float, ks: float, cdf: float, density: float) -> None:
    assert round(ks_distance(alpha), 4) == ks
    assert round(cdf_rmse(alpha), 4) == cdf
    assert round(density_rmse(alpha), 3) == density


# At 9 levels the audit prints 3.082 bits for alpha 1.6; the exact value is 3.08147 (the closed
# form, and FSQ on evenly spaced quantiles below), so 3.081 stands here.
@pytest.mark.parametrize(
    ("levels", "paper", "tanh", "equal_width"),
    [
        (3, (1.492, 0.938), (1.563, 0.985), (1.585, 1.000)),
        (5, (2.221, 0.932), (2.305, 0.988), (2.321, 0.9995)),
        (9, (3.081, 0.941), (3.148, 0.985), (3.166, 0.997)),
        (17, (4.017, 0.952), (4.057, 0.979), (4.078, 0.993)),
        (33, (4.991, 0.964), (5.008, 0.975), (5.029, 0.990)),
        (65, (5.982, 0.973), (5.984, 0.974), (6.004, 0.987)),
        (129, (6.979, 0.978), (6.973, 0.974), (6.991, 0.986)),
    ],
)
def test_level_entropy(
    levels: int,
    paper: tuple[float, float],
    tanh: tuple[float, float],
    equal_width: tuple[float, float],
) -> None:
    rows: list[tuple[float, Cells, tuple[float, float]]] = [
        (1.6, "paper", paper),
        (2.0, "paper", tanh),
        (1.6, "equal_width", equal_width),
    ]
    for alpha, cells, (bits, utilisation) in rows:
        assert round(level_entropy_bits(levels, alpha, cells), 3) == bits
        digits = 4 if utilisation == 0.9995 else 3  # as printed
        assert round(level_utilisation(levels, alpha, cells), digits) == utilisation


def test_code_standard_deviation() -> None:
    """The audit prints 0.631 for 17 levels under tanh; the exact value is 0.63048."""
    found = [round(code_std(levels, alpha), 3) for levels in (17, 5) for alpha in (1.6, 2.0)]
    assert found == [0.563, 0.630, 0.596, 0.669]
    assert code_std(2, 1.6) == pytest.approx(1.0)  # -1 and 1, as often


@pytest.mark.parametrize("cells", ["paper", "equal_width"])
@pytest.mark.parametrize(("levels", "alpha"), [(9, 1.6), (17, 2.0)])
def test_probabilities_are_those_of_the_quantizer(levels: int, alpha: float, cells: Cells) -> None:
    count = 400_000
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    latents = torch.special.ndtri(quantiles).view(1, 1, -1, 1)
    indices = FSQ([levels], alpha=alpha, cells=cells)(latents).indices
    occupied = torch.bincount(indices.flatten(), minlength=levels) / count
    expected = level_probabilities(levels, alpha, cells)
    assert occupied.tolist() == pytest.approx(expected, abs=1e-5)


def test_cdf_ends_at_0_and_1_and_is_symmetric() -> None:
    assert [bounded_cdf(y, 1.6) for y in (-2.0, -1.0, 0.0, 1.0, 2.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert bounded_cdf(0.7, 1.6) + bounded_cdf(-0.7, 1.6) == pytest.approx(1.0, abs=1e-15)


def test_two_levels_are_a_fair_coin() -> None:
    assert level_probabilities(2, 1.6) == [0.5, 0.5]
    assert level_entropy_bits(2, 1.6) == 1.0


def test_numbers_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels=1 cannot"):
        level_entropy_bits(1, 1.6)
    for alpha in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="use a number above 0"):
            level_entropy_bits(3, alpha)
        with pytest.raises(ValueError, match=r"use 0\.1 to 10"):
            ks_distance(alpha)
