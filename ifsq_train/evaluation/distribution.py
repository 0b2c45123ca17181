"""What a bound makes of a standard normal latent, computed rather than sampled.

The paper picks ``alpha = 1.6`` in ``y = 2 sigmoid(alpha z) - 1`` because y is then nearly uniform
on (-1, 1) for z ~ N(0, 1) (tanh is ``alpha = 2``). A uniform y fills the levels evenly only if
their cells are equally wide; the paper's grid gives the two end levels cells of half width. These
functions measure the two effects apart. Trained latents need not be normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

Cells = Literal["paper", "equal_width"]

# Integrals over y run over x = atanh y = alpha z / 2, where every integrand here is smooth and
# vanishes at both ends: the trapezoidal rule is then exact to rounding.
_STEP = 1.0 / 1024
_SMALLEST_ALPHA, _LARGEST_ALPHA = 0.1, 10.0


def normal_cdf(z: float) -> float:
    """P(Z <= z) of a standard normal Z; exact to rounding in the lower tail too."""
    return 0.5 * math.erfc(-z / math.sqrt(2.0))


def bounded_cdf(y: float, alpha: float) -> float:
    """P(2 sigmoid(alpha Z) - 1 <= y) of a standard normal Z, for any real y."""
    if y <= -1.0:
        return 0.0
    if y >= 1.0:
        return 1.0
    return normal_cdf(2.0 * math.atanh(y) / alpha)


def ks_distance(alpha: float) -> float:
    """Largest difference of `bounded_cdf` and the uniform distribution's on (-1, 1).

    Raises:
        ValueError: alpha outside 0.1..10, as in the two functions below.
    """
    return max(abs(_cdf_error(z, y)) for z, y, _ in _grid(alpha))


def cdf_rmse(alpha: float) -> float:
    """Root mean square of that difference over y uniform on (-1, 1)."""
    squares = (_cdf_error(z, y) ** 2 * slope for z, y, slope in _grid(alpha))
    return math.sqrt(math.fsum(squares) * _STEP / 2.0)


def density_rmse(alpha: float) -> float:
    """Root mean square over (-1, 1) of the difference of y's density and the uniform 1/2."""
    squares = (
        (_normal_density(z) * 2.0 / alpha / slope - 0.5) ** 2 * slope
        for z, _, slope in _grid(alpha)
    )
    return math.sqrt(math.fsum(squares) * _STEP / 2.0)


def level_probabilities(levels: int, alpha: float, cells: Cells = "paper") -> list[float]:
    """Probability of each level of `FSQ` for a standard normal latent, lowest level first.

    Args:
        levels: at least 2.
        alpha: slope of the bound, above 0.
        cells: ``paper`` rounds y (L-1)/2, so the end cells have half width; ``equal_width`` cuts
            (-1, 1) into L equal parts.

    Raises:
        ValueError: fewer than two levels, or alpha not positive.
    """
    if not 0.0 < alpha < math.inf:
        raise ValueError(f"alpha={alpha} is not a slope of the bound; use a number above 0")
    if levels < 2:
        raise ValueError(f"levels={levels} cannot carry information; use at least 2")
    width = levels - 1 if cells == "paper" else levels
    inner = [(2 * above - levels) / width for above in range(1, levels)]
    cdf = [0.0, *(bounded_cdf(edge, alpha) for edge in inner), 1.0]
    return [upper - lower for lower, upper in pairwise(cdf)]


def level_entropy_bits(levels: int, alpha: float, cells: Cells = "paper") -> float:
    """Entropy of the digit in bits; at most log2 of the levels. Raises as above."""
    shares = level_probabilities(levels, alpha, cells)
    return -math.fsum(share * math.log2(share) for share in shares if share > 0.0)


def level_utilisation(levels: int, alpha: float, cells: Cells = "paper") -> float:
    """Effective levels ``2 ** entropy`` over levels: 1 if all are equally likely."""
    return 2.0 ** level_entropy_bits(levels, alpha, cells) / levels


def code_std(levels: int, alpha: float) -> float:
    """Standard deviation of the paper grid's codes in [-1, 1], to choose latent multipliers."""
    shares = level_probabilities(levels, alpha)
    codes = (2.0 * level / (levels - 1) - 1.0 for level in range(levels))
    return math.sqrt(math.fsum(p * code**2 for p, code in zip(shares, codes, strict=True)))


def _grid(alpha: float) -> Iterator[tuple[float, float, float]]:
    """z, y and dy/dx at evenly spaced x = atanh y."""
    if not _SMALLEST_ALPHA <= alpha <= _LARGEST_ALPHA:
        raise ValueError(
            f"alpha={alpha} is outside what the quadrature resolves; use"
            f" {_SMALLEST_ALPHA} to {_LARGEST_ALPHA:g}"
        )
    # dy/dx falls like exp(-2|x|); the squared density peaks near alpha^2 / 4, alpha / 3 wide.
    count = round((20.0 + alpha**2) / _STEP)
    for index in range(-count, count + 1):
        x = index * _STEP
        yield 2.0 * x / alpha, math.tanh(x), 1.0 / math.cosh(x) ** 2


def _cdf_error(z: float, y: float) -> float:
    return normal_cdf(z) - (y + 1.0) / 2.0


def _normal_density(z: float) -> float:
    return math.exp(-z * z / 2.0) / math.sqrt(2.0 * math.pi)
