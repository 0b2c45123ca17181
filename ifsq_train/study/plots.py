"""A study's plots, from its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import UserError
from ifsq_train.config.study import HistogramConfig, PlotConfig, StudyConfig
from ifsq_train.study.claims import mean_points, trend_points
from ifsq_train.study.rows import Records, Row, matching
from ifsq_train.study.statistics import fit_line
from ifsq_train.study.svg import Series, line_plot

CURVE_AXES = ("flops", "steps", "seconds")


def draw(config: StudyConfig, rows: Sequence[Row], records: Records) -> dict[str, str]:
    """SVG by title, for the plots that have points."""
    found = {plot.title: _plot(config, plot, rows) for plot in config.plots}
    found |= {one.title: _histogram(one, rows, records) for one in config.histograms}
    return {title: svg for title, svg in found.items() if svg}


def _plot(config: StudyConfig, plot: PlotConfig, rows: Sequence[Row]) -> str:
    rows = matching(rows, plot.where)
    label = config.measures[plot.measure].label
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = str(row.variant.labels.get(plot.series, "")) if plot.series else ""
        groups.setdefault(name, []).append(row)
    if plot.x in CURVE_AXES:
        lines = [Series(name, _curve(plot, part)) for name, part in groups.items()]
        return line_plot(plot.title, _axis_name(plot.x), label, lines, log=plot.log)
    lines = [_scatter(plot, name, part, joined=plot.series) for name, part in groups.items()]
    if plot.fit:
        lines += _fitted(plot, rows)
    return line_plot(plot.title, plot.x, label, lines, log=plot.log)


def _axis_name(x: str) -> str:
    return {"flops": "training FLOPs", "steps": "step", "seconds": "seconds"}[x]


def _curve(plot: PlotConfig, rows: Sequence[Row]) -> list[tuple[float, float, float]]:
    key = "step" if plot.x == "steps" else plot.x
    columns: dict[int, list[tuple[float, float]]] = {}
    for row in rows:
        for point in row.curve:
            if plot.measure in point.measures:
                values = columns.setdefault(point.step, [])
                values.append((point.x(key), point.measures[plot.measure]))
    return [_spot(values) for _, values in sorted(columns.items())]


def _scatter(plot: PlotConfig, name: str, rows: Sequence[Row], joined: str | None) -> Series:
    columns: dict[tuple[float, str], list[tuple[float, float]]] = {}
    for row in rows:
        x = _x_of(plot, row)
        if x is not None and plot.measure in row.measures:
            key = (x, row.variant.title)
            columns.setdefault(key, []).append((x, row.measures[plot.measure]))
    ordered = sorted(columns.items())
    names = () if joined else [title for (_, title), _ in ordered]
    return Series(name, [_spot(values) for _, values in ordered], names)


def _x_of(plot: PlotConfig, row: Row) -> float | None:
    if plot.x in row.variant.facts:
        return row.variant.facts[plot.x]
    try:
        return float(row.variant.labels[plot.x])
    except (KeyError, ValueError):
        return None


def _spot(values: Sequence[tuple[float, float]]) -> tuple[float, float, float]:
    ys = [y for _, y in values]
    deviation = float(np.std(ys, ddof=1)) if len(ys) > 1 else 0.0
    return float(np.mean([x for x, _ in values])), float(np.mean(ys)), deviation


def _fitted(plot: PlotConfig, rows: Sequence[Row]) -> list[Series]:
    means = mean_points(trend_points(rows, plot.x, plot.measure))
    if len({x for x, _ in means}) < 3:
        return []
    xs, ys = zip(*means, strict=True)
    line = fit_line(xs, ys)
    ends = [(2.0**x, line.intercept + line.slope * x, 0.0) for x in (min(xs), max(xs))]
    return [Series(f"line, R² {line.r2:.2f}", ends, dashed=True)]


def _histogram(config: HistogramConfig, rows: Sequence[Row], records: Records) -> str:
    lines, bins = [], 0
    for label in config.labels:
        found = []
        for row in matching(rows, {**config.where, config.axis: label}):
            record = records.get(row.variant.stages[config.stage])
            if record is not None:
                found.append(_list_at(record["numbers"], config.key))
        if found:
            shares = np.mean(found, axis=0)
            bins = len(shares)
            width = (config.high - config.low) / bins
            middles = [config.low + width * (place + 0.5) for place in range(bins)]
            deviations = np.std(found, axis=0)
            points = list(zip(middles, shares.tolist(), deviations.tolist(), strict=True))
            lines.append(Series(f"{config.axis} {label}", points))
    if not lines:
        return ""
    even = [(x, 1.0 / bins, 0.0) for x in (config.low, config.high)]
    lines.append(Series("uniform", even, dashed=True))
    return line_plot(config.title, "output", f"share of {bins} bins", lines)


def _list_at(numbers: Mapping[str, Any], key: str) -> list[float]:
    node: Any = numbers
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, list):
        raise UserError(f"histogram '{key}': no list of numbers in the stage's record")
    return [float(value) for value in node if not math.isnan(value)]
