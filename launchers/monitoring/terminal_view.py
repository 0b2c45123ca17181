"""The terminal view of `ifsq monitor`: one table for each run, from its own endpoint."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from ifsq_train.metrics import names
from ifsq_train.metrics.names import MetricSpec
from ifsq_train.metrics.progress import format_duration
from launchers.monitoring.prometheus_server import Sample, find_endpoints, read_endpoint

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 2.0


class Numbers:
    """The newest numbers of one run, summed over its nodes, and their rates."""

    def __init__(self, samples: list[Sample], earlier: Numbers | None, now: float) -> None:
        self._earlier, self._now = earlier, now
        self._values: dict[tuple[str, str], float] = {}
        for sample in samples:
            label = ",".join(f"{v}" for k, v in sorted(sample.labels.items()) if k != "run")
            key = (sample.name, label)
            self._values[key] = self._values.get(key, 0.0) + sample.value

    def get(self, spec: MetricSpec) -> float | None:
        """A number without labels; None where the run does not have it."""
        return self._values.get((spec.name, ""))

    def by_label(self, spec: MetricSpec) -> dict[str, float]:
        """A number by the value of its label."""
        return {label: v for (name, label), v in self._values.items() if name == spec.name}

    def rate(self, spec: MetricSpec) -> float | None:
        """Change per second since the numbers before; summed over labels."""
        if self._earlier is None or self._now <= self._earlier._now:
            return None
        change = sum(self.by_label(spec).values()) - sum(self._earlier.by_label(spec).values())
        return max(0.0, change) / (self._now - self._earlier._now)


def lines_of_run(numbers: Numbers) -> list[tuple[str, str]]:
    """What the view shows of a run: (what, value) pairs, without what the run does not have."""
    rows = numbers.get(names.PRECOMPUTE_EXPECTED_ROWS)
    lines: list[tuple[str, str | None]] = [
        ("step", _of(numbers.get(names.STEP), numbers.get(names.PLANNED_STEPS))),
        ("speed", _per_second(numbers.rate(names.SAMPLES), "images/s")),
        ("tokens", _per_second(numbers.rate(names.TOKENS), "tokens/s")),
        ("loss", _several(numbers.by_label(names.LOSS))),
        ("gradient norm", _several(numbers.by_label(names.GRADIENT_NORM))),
        ("learning rate", _several(numbers.by_label(names.LEARNING_RATE))),
        ("waiting for data", _share(_data_wait(numbers))),
        ("goodput", _share(numbers.get(names.GOODPUT))),
        ("last checkpoint", _age(numbers.get(names.CHECKPOINT_TIMESTAMP))),
        ("last step", _age(numbers.get(names.LAST_STEP_TIMESTAMP))),
        ("workers", _count(numbers.get(names.WORLD_SIZE))),
        ("restarts", _count(numbers.get(names.RESTARTS))),
        ("code entropy", _bits(numbers.get(names.CODE_ENTROPY))),
        ("dead levels", _total(numbers.by_label(names.DEAD_LEVELS))),
        (
            "rows",
            _of(
                numbers.get(names.PRECOMPUTE_DONE_ROWS), numbers.get(names.PRECOMPUTE_EXPECTED_ROWS)
            ),
        ),
        ("rows per second", _per_second(numbers.rate(names.PRECOMPUTE_ROWS), "rows/s")),
        ("shards to do", _count(numbers.get(names.PRECOMPUTE_PENDING))),
        ("unreadable images", _count(numbers.get(names.QUARANTINED))),
        ("memory", _bytes(numbers.get(names.RESIDENT_MEMORY))),
        ("GPU memory", _bytes(numbers.get(names.DEVICE_MEMORY))),
        ("free storage", _bytes(numbers.get(names.STORAGE_FREE))),
    ]
    if rows is None:
        lines = [line for line in lines if line[0] != "rows per second"]
    return [(what, value) for what, value in lines if value is not None]


def show(runs: Path, seconds: float | None = None) -> None:
    """Show the runs below a folder until Ctrl-C, or for some seconds."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    earlier: dict[str, Numbers] = {}
    deadline = None if seconds is None else time.monotonic() + seconds
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            view, earlier = render(runs, earlier)
            live.update(view, refresh=True)
            if deadline is not None and time.monotonic() >= deadline:
                return
            time.sleep(min(REFRESH_SECONDS, seconds or REFRESH_SECONDS))


def render(runs: Path, earlier: dict[str, Numbers]) -> tuple[RenderableType, dict[str, Numbers]]:
    """One picture of all runs, and the numbers the next one is compared with."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table

    samples: dict[str, list[Sample]] = {}
    silent: list[str] = []
    for url, run in find_endpoints(runs).items():
        found = read_endpoint(url)
        if found is None:
            silent.append(f"{run}: {url} does not answer")
        else:
            samples.setdefault(run, []).extend(found)
    now = time.monotonic()
    numbers = {run: Numbers(found, earlier.get(run), now) for run, found in samples.items()}
    parts: list[RenderableType] = []
    for run, found in numbers.items():
        table = Table.grid(padding=(0, 2))
        for what, value in lines_of_run(found):
            table.add_row(what, value)
        parts.append(Panel(table, title=run, expand=False))
    parts += silent
    if not parts:
        parts.append(f"no run in {runs} has an endpoint now; start one, or give --runs")
    return Group(*parts), numbers


def _data_wait(numbers: Numbers) -> float | None:
    rate, ranks = numbers.rate(names.DATA_WAIT_SECONDS), numbers.by_label(names.DATA_WAIT_SECONDS)
    return rate / len(ranks) if rate is not None and ranks else None


def _of(done: float | None, total: float | None) -> str | None:
    if done is None or not total:
        return None
    return f"{done:.0f} of {total:.0f} ({done / total:.0%})"


def _per_second(rate: float | None, unit: str) -> str | None:
    return None if rate is None else f"{rate:.4g} {unit}"


def _several(values: dict[str, float]) -> str | None:
    return "  ".join(f"{label} {value:.4g}" for label, value in sorted(values.items())) or None


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.0%}"


def _age(timestamp: float | None) -> str | None:
    return None if timestamp is None else f"{format_duration(time.time() - timestamp)} ago"


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:.0f}"


def _total(values: dict[str, float]) -> str | None:
    return f"{sum(values.values()):.0f}" if values else None


def _bits(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f} bits"


def _bytes(value: float | None) -> str | None:
    return None if value is None else f"{value / 2**30:.2f} GiB"
