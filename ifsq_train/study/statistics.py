"""The few tests a study's verdicts rest on. Small numbers of seeds: Student's t, never normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.errors import UserError

LEVEL = 0.05
FEWEST_SEEDS = 3
"""Below, every verdict is `undecided`."""


@dataclass(frozen=True)
class Comparison:
    """A paired comparison over seeds.

    Attributes:
        n: seeds both have.
        difference: mean of first minus second.
        error: its standard error.
        p: two-sided, of no difference; 1 below three seeds.
        ahead: seeds in which the first is larger.
    """

    n: int
    difference: float
    error: float
    p: float
    ahead: int


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison:
    """Student's paired t-test over the seeds that both have."""
    seeds = sorted(set(first) & set(second))
    gaps = [first[seed] - second[seed] for seed in seeds]
    return one_sample(gaps)


def one_sample(values: Sequence[float]) -> Comparison:
    """Whether the mean of some values is zero."""
    n = len(values)
    mean = float(np.mean(values)) if n else math.nan
    ahead = sum(value > 0 for value in values)
    if n < 2:
        return Comparison(n, mean, math.nan, 1.0, ahead)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if n < FEWEST_SEEDS:
        return Comparison(n, mean, error, 1.0, ahead)
    if error <= 1e-12 * max(1.0, abs(mean)):
        return Comparison(n, mean, error, 1.0 if mean == 0 else 0.0, ahead)
    return Comparison(n, mean, error, float(2.0 * _t().sf(abs(mean / error), n - 1)), ahead)


def interval(values: Sequence[float], confidence: float = 1.0 - LEVEL) -> tuple[float, float]:
    """The t-interval of a mean; infinite below two values."""
    n = len(values)
    if n < 2:
        return -math.inf, math.inf
    half = float(_t().ppf(0.5 + confidence / 2.0, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    mean = float(np.mean(values))
    return mean - half, mean + half


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's method, in the order given."""
    order = sorted(range(len(values)), key=lambda place: values[place])
    corrected, largest = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class Line:
    """y = intercept + slope x, and the part of the variance it explains."""

    intercept: float
    slope: float
    r2: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line:
    """Least squares; at least two different x."""
    slope, intercept = np.polyfit(x, y, 1)
    rest = np.asarray(y) - (intercept + slope * np.asarray(x))
    total = float(((np.asarray(y) - np.mean(y)) ** 2).sum())
    r2 = 1.0 - float((rest**2).sum()) / total if total > 0 else 1.0
    return Line(float(intercept), float(slope), r2)


def find_knee(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Where a broken line of two parts fits best, among the inner x; None below five points."""
    order = np.argsort(x)
    xs, ys = np.asarray(x, float)[order], np.asarray(y, float)[order]
    inner = np.unique(xs)[1:-1]
    if len(xs) < 5 or len(inner) == 0:
        return None
    errors = []
    for place in inner:
        design = np.stack([np.ones_like(xs), xs, np.maximum(0.0, xs - place)], 1)
        solution, *_ = np.linalg.lstsq(design, ys, rcond=None)
        errors.append(float(((design @ solution - ys) ** 2).sum()))
    return float(inner[int(np.argmin(errors))])


def _t() -> Any:
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError(
            "verdicts need scipy, which is not installed; run pip install scikit-learn"
        ) from None
    return t
