"""What a user sees of a run that happens in other processes: its progress, from its files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ifsq_train.config import TrainConfig


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
    from ifsq_train.metrics.jsonl import read_jsonl

    while True:
        ending = stop.wait(0.5)
        records = read_jsonl(path)
        if records:
            last = records[-1]
            shown = {key: last[key] for key in ("loss", "data_wait_ratio") if key in last}
            line.update(int(last["step"]), **shown)  # type: ignore[attr-defined]
        if ending:
            return
