"""A folder of this machine that belongs to this user alone."""

import contextlib
import os
import stat
import tempfile
from pathlib import Path

from data_pipelines.errors import UserError


def private_folder(name: str) -> Path:
    """The folder `name`-UID in the machine's temporary folder: mode 0700, made if missing.

    Others may write to the temporary folder, so what stands there is only used if it is a real
    folder (no link) of this user.

    Raises:
        UserError: something else stands there.
    """
    folder = Path(tempfile.gettempdir()) / f"{name}-{os.getuid()}"
    make_private(folder)
    return folder


def make_private(folder: Path) -> None:
    """Make a folder with mode 0700, or see to it that an existing one is this user's and has it.

    Raises:
        UserError: it is a link, a file, or another user's.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise UserError(
            f"{folder} is not a folder of this user (uid {os.getuid()}); remove it, or set TMPDIR "
            "to a folder of your own"
        )
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
