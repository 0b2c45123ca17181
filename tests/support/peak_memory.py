"""How much more memory than before a piece of work took at its peak, on Linux."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROCESS = Path("/proc/self")


@dataclass
class Peak:
    """`megabytes` beyond what the process had when the block began."""

    megabytes: float = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures its block."""
    (PROCESS / "clear_refs").write_text("5")  # the peak begins anew
    before, peak = _kilobytes("VmRSS"), Peak()
    yield peak
    peak.megabytes = (_kilobytes("VmHWM") - before) / 1024


def _kilobytes(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (PROCESS / "status").read_text())
    assert found is not None
    return int(found[1])
