"""Which checkpoints of a run are what was written, found out by reading each once."""

from __future__ import annotations

import logging
import os
from pathlib import Path

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


def _signature(target: Path) -> frozenset[tuple[str, int, int, int, int]]:
    """Changes with every change to a file of the checkpoint."""
    found = ((entry.name, entry.stat()) for entry in os.scandir(target))
    return frozenset(
        (name, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        for name, stat in found
    )
