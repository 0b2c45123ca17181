"""Kernel distance of two sets of features: KID where they are Inception's (Binkowski et al. 2018).

Unlike a Frechet distance its estimate is unbiased, so sets of different or small sizes compare.
"""

from __future__ import annotations

from torch import Tensor

_ROWS_AT_ONCE = 2048


def kernel_distance(real: Tensor, fake: Tensor) -> float:
    """Unbiased squared MMD with the cubic kernel ``(x . y / D + 1)^3``, in float64.

    All rows are used at once, so the value does not depend on a draw of subsets; it is what the
    usual average over random subsets estimates. It can be slightly below 0.

    Args:
        real, fake: features float [N, D] and [M, D].

    Raises:
        ValueError: fewer than two rows of either, or features of different widths.
    """
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"features of different widths: {real.shape[1]} and {fake.shape[1]}")
    if min(len(real), len(fake)) < 2:
        raise ValueError(f"needs 2 rows of each, found {len(real)} and {len(fake)}")
    within = _mean_apart(real) + _mean_apart(fake)
    across = _kernel_sum(real, fake) / (len(real) * len(fake))
    return within - 2.0 * across


def _mean_apart(rows: Tensor) -> float:
    """Mean of the kernel over pairs of different rows."""
    count = len(rows)
    wide = rows.double()
    own = float(((wide * wide).sum(1) / rows.shape[1] + 1.0).pow(3).sum())
    return (_kernel_sum(rows, rows) - own) / (count * (count - 1))


def _kernel_sum(first: Tensor, second: Tensor) -> float:
    """Sum of the kernel over all pairs, a block of rows at a time."""
    other = second.double().t() / first.shape[1]
    return sum(
        float((rows.double() @ other).add_(1.0).pow_(3).sum())
        for rows in first.split(_ROWS_AT_ONCE)
    )
