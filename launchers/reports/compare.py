"""Runs side by side: where their recipes differ, their numbers, and deviation over seeds."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launchers.reports.runs import StoredRun, flatten


@dataclass(frozen=True)
class Table:
    """Rows of text with a heading, for a terminal, a page or a CSV file."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def csv(self) -> str:
        """RFC 4180 text with a header line."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
        return text.getvalue()

    def lines(self) -> list[str]:
        """Aligned columns for a terminal."""
        rows = [self.columns, *self.rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(self.columns))]
        return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def recipe_differences(runs: Sequence[StoredRun]) -> Table:
    """Keys whose values are not the same in all runs of a kind that have a recipe."""
    flat = [flatten(run.recipe) for run in runs]
    keys = sorted({key for values in flat for key in values})
    rows = []
    for key in keys:
        shown = [_text(values[key]) if key in values else "-" for values in flat]
        if len(set(shown)) > 1:
            rows.append((key, *shown))
    return Table("Differences between recipes", ("key", *_labels(runs)), tuple(rows))


def numbers(runs: Sequence[StoredRun]) -> Table:
    """All final numbers, one column per run."""
    keys = dict.fromkeys(key for run in runs for key in run.numbers)
    rows = tuple((key, *(_text(run.numbers.get(key)) for run in runs)) for key in keys)
    return Table("Numbers", ("number", *_labels(runs)), rows)


def over_seeds(runs: Sequence[StoredRun]) -> Table | None:
    """Mean and standard deviation where runs differ only in their seed; None where none do.

    The deviation is that of a sample (denominator n - 1).
    """
    groups: dict[str, list[StoredRun]] = {}
    for run in runs:
        groups.setdefault(run.experiment(), []).append(run)
    rows: list[tuple[str, ...]] = []
    for group in groups.values():
        if len({run.seed for run in group}) < 2:
            continue
        for key in group[0].numbers:
            values = [run.numbers.get(key) for run in group]
            finite = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
            if len(finite) == len(group):
                spread = statistics.stdev(finite)
                row = (group[0].name, key, _text(statistics.fmean(finite)), _text(spread))
                rows.append((*row, str(len(finite))))
    if not rows:
        return None
    return Table("Over seeds", ("run", "number", "mean", "deviation", "n"), tuple(rows))


def tables(runs: Sequence[StoredRun]) -> list[Table]:
    """All tables of a comparison; kinds and tasks are not compared with each other."""
    found: list[Table] = []
    for kind in dict.fromkeys(run.label for run in runs):
        same = [run for run in runs if run.label == kind]
        found.append(_titled(numbers(same), kind))
        if len(same) > 1:
            found.append(_titled(recipe_differences(same), kind))
            seeds = over_seeds(same)
            found += [_titled(seeds, kind)] if seeds is not None else []
    return [table for table in found if table.rows]


def _titled(table: Table, kind: str) -> Table:
    return Table(f"{table.title}: {kind}", table.columns, table.rows)


def _labels(runs: Sequence[StoredRun]) -> list[str]:
    """Names of the runs; their paths where names repeat."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else str(run.path) for run in runs]


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_text(one)}" for key, one in value.items())
    return str(value)
