"""Memory of this process and everything it started."""

from __future__ import annotations

import threading

import psutil

EVERY_SECONDS = 10.0
"""A look at all of Ray's processes takes a quarter of a second of a processor."""


class PeakMemory:
    """Samples the memory of the process tree while the block runs.

    Shared pages are counted once per process in proportion (PSS), so that the sum is what the
    machine really gives.

    Attributes:
        peak_bytes: largest sum seen.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_bytes(psutil.Process()))
            if self._stop.wait(EVERY_SECONDS):
                return


def tree_bytes(root: psutil.Process) -> int:
    """Proportional set size of a process and its descendants, in bytes."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has ended meanwhile
    return total
