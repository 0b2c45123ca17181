"""Opening .npz files of others: sizes are checked before anything is allocated."""

import math
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from data_pipelines.errors import DataError
from data_pipelines.regular_files import open_regular

MAX_RATIO = 200
"""Times that an array may be larger than its compressed bytes; photographs stay below 2."""
SMALL_BYTES = 64_000_000
"""Arrays up to this size may compress as well as they like."""
_FAULTS = (ValueError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError)
"""What reading a damaged .npz raises. RuntimeError is zipfile's for encrypted members, and for
compressions and versions of the format that it cannot read."""


def open_npz(source: Path | bytes, name: str) -> Any:
    """`numpy.load` of an .npz file whose arrays are as large as their headers say.

    Args:
        source: a regular file, or the file's bytes.
        name: for messages.

    Returns:
        The arrays by name, read when asked for.

    Raises:
        DataError: no .npz file; an array of objects, or one of another size than its header says
            or much larger than its compressed bytes.
        OSError: the file cannot be read.
    """
    with BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                for member in archive.infolist():
                    _check(archive, member, name)
        except DataError:
            raise
        except _FAULTS as error:
            raise DataError(f"{name}: not an .npz file ({error})") from error
    # A path is given, not the file: numpy closes only what it opened itself.
    return np.load(BytesIO(source) if isinstance(source, bytes) else source, allow_pickle=False)


def _check(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> None:
    with archive.open(member) as stream:
        major, minor = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if (major, minor) == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = read(stream)
        said, found = math.prod(shape) * dtype.itemsize + stream.tell(), member.file_size
    if dtype.hasobject:
        raise DataError(f"{name}: {member.filename} has Python objects; save plain numbers")
    if said != found:
        raise DataError(
            f"{name}: {member.filename} should have {said} bytes by its header, found {found};"
            " the file is damaged"
        )
    if found > max(SMALL_BYTES, MAX_RATIO * member.compress_size):
        raise DataError(
            f"{name}: {member.filename} grows from {member.compress_size} to {found} bytes;"
            f" more than {MAX_RATIO}-fold is refused, save it with numpy.savez"
        )
