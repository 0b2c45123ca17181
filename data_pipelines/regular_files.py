"""Opening files for reading that are files: a pipe or a device would hold up a reader for ever."""

import os
import stat
from io import BufferedReader
from pathlib import Path

from data_pipelines.errors import DataError


def open_regular(path: Path) -> BufferedReader:
    """A regular file, open for reading bytes.

    Raises:
        DataError: it is a folder, a pipe, a socket or a device.
        OSError: as `open` raises it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise DataError(f"{path} is {what}; a file is needed there")
    return os.fdopen(descriptor, "rb")
