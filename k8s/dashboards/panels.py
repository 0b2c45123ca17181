"""Panels and dashboards as data, without Grafana's details."""

from __future__ import annotations

from dataclasses import dataclass

R = 'namespace=~"$namespace", run=~"$run"'
"""Label matcher of every query: runs of one name in two namespaces are two runs."""
RUN = "{{namespace}} {{run}}"
PODS = 'namespace=~"$namespace", pod=~"($run)-[a-z0-9]{5}-.+"'
"""Matches the pods of the chosen jobs in other exporters' metrics."""
GPU_ONLY = {
    "Model FLOPs utilisation",
    "GPU memory by node",
    "Peak GPU memory of rank 0",
}
"""Panels that have no data on machines without a GPU."""
GREEN, YELLOW, RED, BLUE = "green", "yellow", "red", "blue"
Thresholds = tuple[tuple[float | None, str], ...]
NEUTRAL: Thresholds = ((None, BLUE),)
"""For numbers that are neither good nor bad."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        title: shown above it.
        unit: Grafana's unit id.
        queries: (PromQL, legend) pairs.
        help: what it shows and what to do when it looks wrong.
        kind: curve over time, or one number.
        minimum: lower end of the axis; None lets Grafana choose.
        maximum: upper end.
        thresholds: (from this value on, colour) pairs; the first has None.
        words: value -> text and colour, for states.
    """

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    help: str
    kind: str = "curve"
    minimum: float | None = None
    maximum: float | None = None
    thresholds: Thresholds = NEUTRAL
    words: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True)
class Dashboard:
    """One dashboard; `variable` is the metric whose `run` labels can be chosen."""

    uid: str
    title: str
    description: str
    variable: str
    rows: dict[str, tuple[Panel, ...]]


def curve(title: str, unit: str, query: str, legend: str, help: str, **options: float) -> Panel:
    """A panel with one query."""
    return Panel(title, unit, ((query, legend),), help, **options)  # type: ignore[arg-type]


def number(
    title: str,
    unit: str,
    query: str,
    help: str,
    thresholds: Thresholds = NEUTRAL,
    words: tuple[tuple[str, str, str], ...] = (),
) -> Panel:
    """A panel that shows the newest value for each run."""
    queries = ((query, RUN),)
    return Panel(title, unit, queries, help, kind="number", thresholds=thresholds, words=words)
