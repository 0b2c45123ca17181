"""Verdicts: what a study's numbers say of each claim, at the study's scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ifsq_train.config.study import (
    BestClaim,
    BetterClaim,
    ClaimConfig,
    CrossingClaim,
    Scalar,
    StudyConfig,
    TrendClaim,
    ValueClaim,
)
from ifsq_train.study.rows import Row, by_seed, matching
from ifsq_train.study.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    Comparison,
    compare,
    find_knee,
    fit_line,
    holm,
    interval,
    one_sample,
)

SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"
LINEAR_R2 = 0.9
"""Least part of the variance a line has to explain for a trend to be called linear."""


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: as the study states it.
        verdict: supported, contradicted or undecided, at this scale.
        n: seeds it rests on.
        ours: the numbers, in short.
        detail: the test, in words.
    """

    claim: ClaimConfig
    verdict: str
    n: int
    ours: str
    detail: str


def judge(config: StudyConfig, rows: Sequence[Row]) -> list[Verdict]:
    """A verdict for every claim of the study.

    Raises:
        UserError: a claim names axes or labels that the study has not.
    """
    return [_judge(config, claim, rows) for claim in config.claims]


def _judge(config: StudyConfig, claim: ClaimConfig, rows: Sequence[Row]) -> Verdict:
    if isinstance(claim, BetterClaim):
        return _better(config, claim, rows)
    if isinstance(claim, BestClaim):
        return _best(config, claim, rows)
    if isinstance(claim, ValueClaim):
        return _value(config, claim, rows)
    if isinstance(claim, CrossingClaim):
        return _crossing(config, claim, rows)
    return _trend(config, claim, rows)


def _better(config: StudyConfig, claim: BetterClaim, rows: Sequence[Row]) -> Verdict:
    first, second = (
        by_seed(matching(rows, where), claim.measure) for where in (claim.first, claim.second)
    )
    found = compare(first, second)
    if not found.n:
        return _nothing(claim)
    show = _Show(config, claim.measure)
    verdict = _decide(found.n, [(show.sign * found.difference, found.p)])
    ours = f"{show.mean(first)} against {show.mean(second)}"
    return Verdict(claim, verdict, found.n, ours, f"paired t-test: {show.difference(found)}")


def _best(config: StudyConfig, claim: BestClaim, rows: Sequence[Row]) -> Verdict:
    rows = matching(rows, claim.where)
    labels = list(dict.fromkeys(row.variant.labels.get(claim.axis) for row in rows))
    labels = [one for one in labels if one is not None]
    chosen = [one for one in labels if claim.among is None or one in claim.among]
    values = {one: by_seed(matching(rows, {claim.axis: one}), claim.measure) for one in chosen}
    matching(rows, {claim.axis: claim.expected})
    values = {one: found for one, found in values.items() if found}
    if claim.expected not in values or len(values) < 2:
        return _nothing(claim)
    show = _Show(config, claim.measure)
    others = [one for one in values if one != claim.expected]
    found = [compare(values[claim.expected], values[one]) for one in others]
    corrected = holm([one.p for one in found])
    n = min(one.n for one in found)
    gaps = [show.sign * one.difference for one in found]
    verdict = _decide(n, list(zip(gaps, corrected, strict=True)))
    missing = len(chosen) - len(values)
    detail = "; ".join(
        f"against {other}: {show.difference(one)}" for other, one in zip(others, found, strict=True)
    )
    if missing and verdict == SUPPORTED:
        verdict = UNDECIDED
    ours = ", ".join(f"{one}: {show.mean(values[one])}" for one in values)
    return Verdict(claim, verdict, n, ours, f"paired t-tests, Holm: {detail}")


def _value(config: StudyConfig, claim: ValueClaim, rows: Sequence[Row]) -> Verdict:
    values = by_seed(matching(rows, claim.where), claim.measure)
    if not values:
        return _nothing(claim)
    low, high = interval(list(values.values()))
    least, most = claim.expected - claim.tolerance, claim.expected + claim.tolerance
    verdict = UNDECIDED
    if len(values) >= FEWEST_SEEDS and low >= least and high <= most:
        verdict = SUPPORTED
    elif len(values) >= FEWEST_SEEDS and (high < least or low > most):
        verdict = CONTRADICTED
    show = _Show(config, claim.measure)
    detail = (
        f"95 % interval {show.number(low)} to {show.number(high)}, expected"
        f" {show.number(claim.expected)} ± {claim.tolerance:g}"
    )
    return Verdict(claim, verdict, len(values), show.mean(values), detail)


def _crossing(config: StudyConfig, claim: CrossingClaim, rows: Sequence[Row]) -> Verdict:
    first, second = (_curves(rows, where, claim) for where in (claim.first, claim.second))
    seeds = sorted(set(first) & set(second))
    if not seeds:
        return _nothing(claim)
    curves = [side[seed] for side in (first, second) for seed in seeds]
    low, high = max(c[0][0] for c in curves), min(c[-1][0] for c in curves)
    show = _Show(config, claim.measure)
    ends = []
    for x, sign in ((low, show.sign), (high, -show.sign)):
        gaps = [sign * (_at(first[s], x) - _at(second[s], x)) for s in seeds]
        ends.append(one_sample(gaps))
    corrected = holm([end.p for end in ends])
    gaps = [end.difference for end in ends]
    verdict = _decide(len(seeds), list(zip(gaps, corrected, strict=True)))
    shown = [
        f"{show.number(float(np.mean([_at(side[s], x) for s in seeds])))}"
        for x in (low, high)
        for side in (first, second)
    ]
    ours = (
        f"{shown[0]} against {shown[1]} at {low:.3g}, {shown[2]} against {shown[3]} at {high:.3g}"
    )
    crossed = _crossed(first, second, seeds, low, high)
    where = f"mean curves cross near {crossed:.3g}" if crossed else "mean curves do not cross"
    detail = (
        f"paired t-tests at {claim.x} {low:.3g} (first ahead by {gaps[0]:.3g}, p"
        f" {_p(ends[0].p)}) and {high:.3g} (second ahead by {gaps[1]:.3g}, p {_p(ends[1].p)});"
        f" {where}"
    )
    return Verdict(claim, verdict, len(seeds), ours, detail)


Curve = list[tuple[float, float]]


def _curves(
    rows: Sequence[Row], where: dict[str, Scalar], claim: CrossingClaim
) -> dict[int, Curve]:
    found = {}
    for row in matching(rows, where):
        points = [
            (point.x(claim.x), point.measures[claim.measure])
            for point in row.curve
            if claim.measure in point.measures
        ]
        if len(points) > 1 and len(points) == len(row.curve):
            found[row.variant.seed] = points
    return found


def _at(curve: Curve, x: float) -> float:
    xs, ys = zip(*curve, strict=True)
    return float(np.interp(math.log(x), np.log(xs), ys))


def _crossed(
    first: dict[int, Curve], second: dict[int, Curve], seeds: list[int], low: float, high: float
) -> float | None:
    """Where the difference of the mean curves changes its sign for the last time."""
    xs = np.geomspace(low, high, 200)
    gaps = [float(np.mean([_at(first[s], x) - _at(second[s], x) for s in seeds])) for x in xs]
    signs = np.sign(gaps)
    places = np.nonzero(signs[1:] * signs[:-1] < 0)[0]
    return float(xs[places[-1] + 1]) if len(places) else None


def _trend(config: StudyConfig, claim: TrendClaim, rows: Sequence[Row]) -> Verdict:
    points = trend_points(matching(rows, claim.where), claim.x, claim.measure)
    seeds = {seed: found for seed, found in points.items() if len({x for x, _ in found}) > 2}
    if not seeds:
        return _nothing(claim)
    lines = [fit_line(*zip(*found, strict=True)) for found in seeds.values()]
    show = _Show(config, claim.measure)
    slope = one_sample([line.slope for line in lines])
    r2 = float(np.mean([line.r2 for line in lines]))
    verdict = _decide(len(lines), [(-show.sign * slope.difference, slope.p)])
    if verdict == SUPPORTED and r2 < LINEAR_R2:
        verdict = UNDECIDED
    means = mean_points(seeds)
    knee = find_knee([x for x, _ in means], [y for _, y in means])
    shown = f"knee at {2.0**knee:.3g}" if knee is not None else "no knee: fewer than five points"
    ours = f"{slope.difference:+.3g} per doubling, R² {r2:.2f}, {shown}"
    detail = (
        f"lines over log2 {claim.x}, seed by seed: slope {slope.difference:+.3g} ±"
        f" {slope.error:.2g}, p {_p(slope.p)}; linear is R² of {LINEAR_R2} or more; the knee is"
        " that of the best broken line and decides nothing"
    )
    return Verdict(claim, verdict, len(lines), ours, detail)


def trend_points(rows: Sequence[Row], x: str, measure: str) -> dict[int, list[tuple[float, float]]]:
    """By seed, log2 of a fact and the measure, for rows that have both."""
    found: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        if measure in row.measures and row.variant.facts.get(x, 0.0) > 0:
            place = math.log2(row.variant.facts[x])
            found.setdefault(row.variant.seed, []).append((place, row.measures[measure]))
    return found


def mean_points(points: dict[int, list[tuple[float, float]]]) -> list[tuple[float, float]]:
    """Means over seeds of variants, taken in the order they come."""
    columns = zip(*points.values(), strict=False)
    return [
        (float(np.mean([x for x, _ in column])), float(np.mean([y for _, y in column])))
        for column in columns
    ]


def _decide(n: int, tests: list[tuple[float, float]]) -> str:
    """From differences (positive is what the claim says) and p-values."""
    if n < FEWEST_SEEDS:
        return UNDECIDED
    if any(gap < 0 and p < LEVEL for gap, p in tests):
        return CONTRADICTED
    return SUPPORTED if all(gap > 0 and p < LEVEL for gap, p in tests) else UNDECIDED


def _nothing(claim: ClaimConfig) -> Verdict:
    return Verdict(claim, UNDECIDED, 0, "no results yet", "the stages it needs are not done")


@dataclass(frozen=True)
class _Show:
    """Numbers of a measure in words."""

    config: StudyConfig
    measure: str

    @property
    def sign(self) -> float:
        """1 where higher is better, else -1."""
        return -1.0 if self.config.measures[self.measure].better == "lower" else 1.0

    def number(self, value: float) -> str:
        """With the measure's digits."""
        return f"{value:.{self.config.measures[self.measure].digits}f}"

    def mean(self, values: dict[int, float]) -> str:
        """Of all seeds."""
        return self.number(float(np.mean(list(values.values()))))

    def difference(self, found: Comparison) -> str:
        """Mean difference, error, p and how many seeds are ahead."""
        digits = self.config.measures[self.measure].digits + 1
        better = found.ahead if self.sign > 0 else found.n - found.ahead
        return (
            f"{found.difference:+.{digits}f} ± {found.error:.{digits}f}, p {_p(found.p)},"
            f" better in {better} of {found.n}"
        )


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
