"""What a user sees of a run that happens in other processes: its progress, from its files."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ifsq_train.config import TrainConfig
from ifsq_train.metrics.goodput import SUBMITTED_VARIABLE


@contextmanager
def follow_progress(folder: Path, config: TrainConfig) -> Iterator[None]:
    """A progress line fed from the run's metrics file, for the duration of the block."""
    from ifsq_train.metrics.progress import ProgressLine

    line = ProgressLine(config.steps, "steps", config.name)
    stop = threading.Event()
    path = folder / "metrics.jsonl"
    thread = threading.Thread(target=_follow, args=(path, line, stop), daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        line.close()


def _follow(path: Path, line: object, stop: threading.Event) -> None:
    from ifsq_train.metrics.jsonl import LastRecord

    records = LastRecord(path)
    while True:
        ending = stop.wait(0.5)
        last = records.take()
        if last is not None and isinstance(last.get("step"), int):
            shown = {key: last[key] for key in ("loss", "data_wait_ratio") if key in last}
            if (goodput := _goodput(last)) is not None:
                shown["goodput"] = goodput
            line.update(int(last["step"]), **shown)  # type: ignore[attr-defined]
        if ending:
            return


def _goodput(record: dict[str, Any]) -> float | None:
    """Useful part of the time since submission; None where that time is not known."""
    submitted, useful = os.environ.get(SUBMITTED_VARIABLE), record.get("useful_seconds")
    if not submitted or useful is None:
        return None
    return float(useful) / max(time.time() - float(submitted), 1.0)
