"""Temporary files as long as a block; those of processes that were killed go with the next one."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.storage.private import private_folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in this user's own part of the machine's temporary folder.

    Raises:
        UserError: that part belongs to somebody else.
    """
    parent = private_folder("ifsq-scratch")
    _remove_abandoned(parent)
    folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.iterdir():
        owner = folder.name.partition("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError, OverflowError):
        os.kill(pid, 0)
        return True
    return False
