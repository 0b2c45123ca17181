"""How far a precompute is: one line for people, one Prometheus endpoint (the driver's)."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import Counter, deque
from pathlib import Path

from ifsq_train.metrics import names
from ifsq_train.metrics.progress import ProgressLine
from ifsq_train.metrics.prometheus import open_metrics
from ifsq_train.metrics.training import HOST_VARIABLE, endpoint_port
from ifsq_train.precompute_run import STAGES, ItemResult, PrecomputeRun

WINDOW_ITEMS = 32
"""The shares of the stages are those of the last so many items."""


class PrecomputeMonitor:
    """Told of every item by the driver.

    The line reads ``precompute  81920/200000 views  812 views/s  eta 2m25s  pixels 0.03 ...``: the
    last numbers are the shares of the encoders' time spent waiting for pixels and for the storage,
    and waiting for items. IFSQ_METRICS_PORT and IFSQ_METRICS_HOST are those of training.
    """

    def __init__(self, run: PrecomputeRun, show_progress: bool) -> None:
        self._run = run
        self._line = (
            ProgressLine(run.spec.num_rows, "views", "precompute") if show_progress else None
        )
        self._recent: deque[dict[str, float]] = deque(maxlen=WINDOW_ITEMS)
        self._retries = 0
        host = os.environ.get(HOST_VARIABLE, "127.0.0.1")
        self._metrics = open_metrics(
            metrics_folder(run.storage.url), 0, 0, endpoint_port(), host=host
        )
        self._metrics.set(names.PRECOMPUTE_EXPECTED_ROWS, run.spec.num_rows)

    def item(self, result: ItemResult, retries: int = 0) -> None:
        """After `run.done(result)`.

        Args:
            retries: items given out again so far.
        """
        metrics = self._metrics
        metrics.inc(names.PRECOMPUTE_ROWS, result.rows)
        metrics.inc(names.PRECOMPUTE_ITEMS)
        metrics.inc(names.PRECOMPUTE_RETRIES, retries - self._retries)
        metrics.inc(names.QUARANTINED, len(result.bad_samples))
        self._retries = retries
        for stage, seconds in result.stage_seconds.items():
            metrics.inc(names.PRECOMPUTE_STAGE_SECONDS, seconds, stage=stage)
        self._recent.append(dict(result.stage_seconds))
        if self._line is not None:
            self._line.update(self._run.rows_done, **self._shares())

    def _shares(self) -> dict[str, float]:
        total: Counter[str] = Counter()
        for seconds in self._recent:
            total.update(seconds)
        whole = sum(total.values()) or 1.0
        return {stage: total[stage] / whole for stage in STAGES if stage != "encode"}

    def close(self) -> None:
        """Show the last state and stop the endpoint."""
        if self._line is not None:
            self._line.close()
        self._metrics.close()


def metrics_folder(url: str) -> Path:
    """Where the endpoint's address is written: never the dataset, which may be a bucket."""
    name = hashlib.sha256(url.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ifsq-precompute-{os.getuid()}-{name}"
