"""The id under which a tracker's server knows a run, kept in the run folder."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

from data_pipelines.storage.local import write_atomically


def id_file(folder: Path, kind: str) -> Path:
    """Where the id is kept."""
    return folder / f"tracker-{kind}.json"


def kept_id(folder: Path, kind: str) -> str | None:
    """The id of an earlier start of this run; None where there was none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(id_file(folder, kind).read_text())["id"])
    return None


def keep_id(folder: Path, kind: str, make: Callable[[], str]) -> str:
    """The kept id, or a new one, which is kept from now on."""
    found = kept_id(folder, kind)
    if found is None:
        found = make()
        write_atomically(id_file(folder, kind), json.dumps({"id": found}).encode())
    return found
