"""How far a precompute is, in one line for people; Prometheus gets it from ifsq_train.metrics."""

from __future__ import annotations

from collections import Counter, deque

from ifsq_train.metrics.progress import ProgressLine
from ifsq_train.precompute.progress import STAGES, ItemResult

WINDOW_ITEMS = 32
"""The shares of the stages are those of the last so many items."""


class PrecomputeLine:
    """A context manager, told of every item by the driver.

    The line reads ``precompute  81920/200000 views  812 views/s  eta 2m25s  pixels 0.03 ...``: the
    last numbers are the shares of the encoders' time spent waiting for pixels and for the storage,
    and waiting for items.

    Args:
        num_rows: of the finished dataset.
        shown: False shows nothing.
    """

    def __init__(self, num_rows: int, shown: bool) -> None:
        self._line = ProgressLine(num_rows, "views", "precompute") if shown else None
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW_ITEMS)

    def __enter__(self) -> PrecomputeLine:
        return self

    def __exit__(self, *_: object) -> None:
        if self._line is not None:
            self._line.close()

    def item(self, rows_done: int, result: ItemResult) -> None:
        """Show that an item was published; `rows_done` counts earlier runs too."""
        self._recent.append(dict(result.stage_seconds))
        if self._line is not None:
            self._line.update(rows_done, **self._shares())

    def _shares(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for seconds in self._recent:
            total.update(seconds)
        whole = sum(total.values()) or 1.0
        return {stage: total[stage] / whole for stage in STAGES if stage != "encode"}
