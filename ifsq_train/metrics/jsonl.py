"""The run's log as JSON lines: append-only while running, cut back to the checkpoint on resume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_pipelines.errors import UserError
from data_pipelines.storage.open import LocalStorage


class JsonlWriter:
    """Appends one JSON object per line and flushes each, so that readers can follow.

    Opening it drops a torn last line and every line whose ``step`` is beyond `first_step`:
    what a killed run logged after its last checkpoint is done again, and logged again. The log
    of a resumed run therefore has the lines of an uninterrupted one.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        """Open for appending.

        Args:
            path: file to append to, made if missing; its folder must exist.
            first_step: optimizer steps already done; lines of later steps are dropped.

        Raises:
            UserError: a line other than the last is not a JSON object.
        """
        _cut_back(path, first_step)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; values as `json` writes them (NaN and Infinity stay themselves)."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All records of a file, also while it is being written.

    A missing file has none, and a last line that is not whole yet is left out.

    Raises:
        UserError: a line other than the last is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    return [record for record, _ in _whole_lines(path, data)]


def _whole_lines(path: Path, data: bytes) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Records with the bytes they were read from, newline included."""
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if isinstance(record, dict):
            yield record, line
        elif number < len(lines):
            raise UserError(f"{path} line {number} is not a JSON object; repair or remove the line")


def _cut_back(path: Path, first_step: int) -> None:
    """Rewrite the file with the lines up to `first_step`; leave it alone if that is all of it."""
    if not path.exists():
        return
    data = path.read_bytes()
    kept = b"".join(
        line
        for record, line in _whole_lines(path, data)
        if "step" not in record or record["step"] <= first_step
    )
    if kept != data:
        LocalStorage(path.parent).write(path.name, kept)
