"""Where log lines go: a file per rank in the run folder, warnings also to the terminal."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from data_pipelines.storage.credentials import without_credentials

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def log_to_terminal(level: int = logging.INFO) -> None:
    """Plain lines on standard error, for the process the user started."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(levelname)s: %(message)s"))
    handler.addFilter(lambda record: record.name.startswith(_OWN) or record.levelno >= 40)
    logging.basicConfig(level=level, handlers=[handler], force=True)


def log_to_folder(folder: Path, rank: int) -> None:
    """Everything from INFO on into ``logs/rank-00000.log`` of the run folder."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(logs / f"rank-{rank:05d}.log")
    handler.setFormatter(_Formatter(_FORMAT))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    """Shows no credentials of URLs, whoever logs them."""

    def format(self, record: logging.LogRecord) -> str:
        return without_credentials(super().format(record))


_OWN = ("ifsq_train", "data_pipelines", "launchers")
