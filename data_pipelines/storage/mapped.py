"""Files in memory maps, looked after so that a file that shrinks is an error and not a crash.

Reading a page of a map that the file no longer has ends the process with SIGBUS. So whoever reads
through a map asks just before: `MappedFile.check` before a few rows are gathered, `settled` before
a long piece of work on some bytes. Either costs one fstat.
"""

import errno
import mmap
from pathlib import Path

import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.regular_files import open_regular


class _Map(mmap.mmap):
    """A map that knows its file; `size()` asks the system for the file's present size."""

    path: Path


class MappedFile:
    """A file mapped for reading.

    Args:
        path: of the file.
        size: bytes it must have.

    Attributes:
        data: all its bytes.

    Raises:
        DataError: it is missing, cannot be read, or has another size.
    """

    def __init__(self, path: Path, size: int) -> None:
        self._size = size
        try:
            with open_regular(path) as file:
                found = file.seek(0, 2)
                if found != size or not size:
                    raise _other_size(path, found, size)
                self._map = _Map(file.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise DataError(f"{path} is missing; restore it") from None
        except OSError as error:
            refused = error.errno in (errno.ENODEV, errno.EACCES, errno.EINVAL, errno.EPERM)
            how = "copy it to a place that allows memory maps" if refused else "restore it"
            raise DataError(f"{path} cannot be read ({error.strerror}); {how}") from None
        self._map.path = path
        self.data = memoryview(self._map)

    def check(self) -> None:
        """Raise DataError where the file has become shorter since it was opened."""
        _check(self._map)


def settled(data: bytes | memoryview) -> bytes | memoryview:
    """Bytes that stay: those of a map copied, unless its file has become shorter meanwhile.

    Raises:
        DataError: it has; names the file.
    """
    if not isinstance(data, memoryview) or not isinstance(data.obj, _Map):
        return data
    _check(data.obj)
    # numpy copies without the interpreter's lock, so other threads go on while pages are read.
    return np.frombuffer(data, np.uint8).copy().data


def _check(mapped: _Map) -> None:
    if (size := mapped.size()) < len(mapped):
        raise _other_size(mapped.path, size, len(mapped))


def _other_size(path: Path, size: int, expected: int) -> DataError:
    return DataError(
        f"{path} has {size} bytes, the manifest says {expected}; restore it, or make it again"
    )
