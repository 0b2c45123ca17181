"""The fence that keeps an older attempt of a run from writing checkpoints."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

from data_pipelines.documents import read_object
from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically

logger = logging.getLogger(__name__)


class FencedOff(UserError):
    """Another start of the run has taken over its folder; this one must not write there."""


class Fence:
    """Which start of a run owns its folder: the latest. Older ones stop at their next write.

    Args:
        folder: the run's ``checkpoints`` folder.
        attempt: this start's name, equal on all ranks.
    """

    def __init__(self, folder: Path, attempt: str) -> None:
        self._path, self._attempt = folder / "attempt.json", attempt

    def take(self) -> None:
        """Make this start the owner; rank 0 calls it before it looks for a checkpoint."""
        owner = {"attempt": self._attempt, "host": socket.gethostname(), "pid": os.getpid()}
        write_atomically(self._path, json.dumps(owner).encode())

    def check(self) -> None:
        """Still the owner?

        Raises:
            FencedOff: no; names the process that is.
        """
        if not self._path.exists():
            return
        try:
            owner = read_object(self._path)
            attempt, process, host = owner["attempt"], owner["pid"], owner["host"]
        except (UserError, KeyError):
            # Nobody can be told from it; a run is not ended for that.
            logger.warning("%s is damaged; whether this start owns the run is unknown", self._path)
            return
        if attempt != self._attempt:
            raise FencedOff(
                f"{self._path.parent.parent}: another start of this run (process {process} on"
                f" {host}) has taken over the folder; this one ends here. Use one output"
                " folder per run"
            )
