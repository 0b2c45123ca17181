"""The run's log as JSON lines: append-only while running, cut back to the checkpoint on resume."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import DataError
from data_pipelines.regular_files import open_regular
from data_pipelines.storage.open import LocalStorage

logger = logging.getLogger(__name__)

_TAIL_BYTES = 1 << 16


class JsonlWriter:
    """Appends one JSON object per line and flushes each, so that readers can follow.

    Opening it drops a torn last line and every line whose ``step`` is beyond `first_step`:
    what a killed run logged after its last checkpoint is done again, and logged again. The log
    of a resumed run therefore has the lines of an uninterrupted one.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """Open for appending. Where that fails, it is said once and nothing is logged.

        Args:
            path: file to append to, made if missing; its folder must exist.
            first_step: optimizer steps already done; lines of later steps are dropped.
        """
        self._path, self._file = path, None
        try:
            _cut_back(path, first_step)
            self._file = path.open("a", encoding="utf-8")
        except OSError as error:
            self._give_up(error)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; values as `json` writes them (NaN and Infinity stay themselves)."""
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            "%s: %s; nothing more is logged there, the run goes on", self._path, error.strerror
        )
        self.close()
        self._file = None

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # what a full disk did not take
                self._file.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file, also while it is being written.

    A missing file has none, and a last line that is not whole yet is left out. Lines that are
    damaged are left out and named in the log.
    """
    try:
        with open_regular(path) as file:
            data = file.read()
    except FileNotFoundError:
        return []
    except (OSError, DataError) as error:
        logger.warning("%s cannot be read (%s)", path, error)
        return []
    return [record for record, _ in _whole_lines(path, data)]


class LastRecord:
    """The last whole record of a file that grows, reading only its end and only if it changed."""

    def __init__(self, path: Path) -> None:
        self._path, self._size = path, -1

    def take(self) -> dict[str, Any] | None:
        """The record, if there is one that was not taken yet."""
        try:
            size = self._path.stat().st_size
            if size == self._size:
                return None
            with open_regular(self._path) as file:
                file.seek(max(0, size - _TAIL_BYTES))
                lines = file.read(_TAIL_BYTES).split(b"\n")[:-1]
        except (OSError, DataError):
            return None
        self._size = size
        return next((found for line in reversed(lines) if (found := _record(line))), None)


def _record(line: bytes) -> dict[str, Any] | None:
    """The object in a line; None where it is damaged."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _whole_lines(path: Path, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Records with the bytes they were read from, newline included; damaged ones left out."""
    damaged: list[int] = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        record = _record(line)
        if record is not None:
            yield record, line + b"\n"
        elif line.strip():
            damaged.append(number)
    if damaged:
        logger.warning(
            "%s: %d damaged lines are passed over, the first is line %d",
            path, len(damaged), damaged[0],
        )  # fmt: skip


def _cut_back(path: Path, first_step: int) -> None:
    """Rewrite the file with the lines up to `first_step`; leave it alone if that is all of it."""
    if not path.is_file():  # absent, or a device or pipe, which may never end
        return
    data = path.read_bytes()
    kept = b"".join(
        line
        for record, line in _whole_lines(path, data)
        if not _is_later(record.get("step"), first_step)
    )
    if kept != data:
        LocalStorage(path.parent).write(path.name, kept)


def _is_later(step: Any, first_step: int) -> bool:
    return isinstance(step, int | float) and step > first_step
