"""Temporary files as long as a block; those of processes that were killed go with the next one."""

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from data_pipelines.storage.private import private_folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder in this user's own part of the machine's temporary folder.

    It is locked while it is in use. Process ids would not do: processes of other containers or
    machines, which the temporary folder may be shared with, look as if they had ended.

    Raises:
        UserError: that part belongs to somebody else.
    """
    parent = private_folder("ifsq-scratch")
    with ExitStack() as stack:
        with _lock(parent, fcntl.LOCK_EX):
            _remove_abandoned(parent)
            folder = Path(tempfile.mkdtemp(dir=parent))
            stack.enter_context(_lock(folder, fcntl.LOCK_EX))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(parent: Path) -> None:
    for folder in parent.iterdir():
        with (
            contextlib.suppress(FileNotFoundError),  # its owner was quicker
            _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB) as held,
        ):
            if held:
                shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _lock(folder: Path, operation: int) -> Iterator[bool]:
    """Whether the lock is held meanwhile: not where another has it, or the file system has none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        held = True
        try:
            fcntl.flock(handle, operation)
        except OSError:
            held = False
        yield held
    finally:
        os.close(handle)
