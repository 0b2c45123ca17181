"""Which checkpoints of a run are what was written, found out by reading each once."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifsq_train.checkpoint.format import CheckpointError, step_folder
from ifsq_train.checkpoint.reader import Checkpoint

logger = logging.getLogger(__name__)


class IntactCheckpoints:
    """Reads every checkpoint of a folder against its checksums, again only if a file changed."""

    def __init__(self) -> None:
        self._found: dict[Path, frozenset[tuple[str, int, int, int, int]]] = {}

    def among(self, folder: Path, steps: list[int]) -> list[int]:
        """Those of `steps` that are intact, in the same order; others are named in the log."""
        return [step for step in steps if self._is_intact(step_folder(folder, step))]

    def note(self, target: Path) -> None:
        """Every file of this checkpoint was just read back and found right."""
        self._found[target] = _signature(target)

    def _is_intact(self, target: Path) -> bool:
        try:
            signature = _signature(target)
            if self._found.get(target) == signature:
                return True
            Checkpoint(target)
        except (CheckpointError, OSError) as error:
            logger.warning("%s does not count as a checkpoint: %s", target.name, error)
            return False
        self._found[target] = signature
        return True


def read_back(path: Path, expected: Mapping[str, Any]) -> None:
    """Read a file that was just written, past the page cache where the system lets us.

    Args:
        expected: its "bytes" and "sha256".

    Raises:
        OSError: the storage gives other bytes than were written.
    """
    with path.open("rb", buffering=0) as file:
        with contextlib.suppress(OSError):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        size = file.tell()
    if (size, found) != (expected["bytes"], expected["sha256"]):
        raise OSError(f"{path}: read back after writing, it is not what was written")


def _signature(target: Path) -> frozenset[tuple[str, int, int, int, int]]:
    """Changes with every change to a file of the checkpoint."""
    found = ((entry.name, entry.stat()) for entry in os.scandir(target))
    return frozenset(
        (name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for name, stat in found
    )
