"""The errors that mean: the user can fix this."""

import errno
import re

_LINE_BREAK = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")


class UserError(ValueError):
    """Something the user gave is wrong; the message is one line a user can act on.

    It says what was found, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 2.

    Args:
        lines: one for each fault. A line break inside one, as a path may hold, is escaped.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(as_one_line(str(line)) for line in self.args)


def as_one_line(text: str) -> str:
    """A text with its line breaks escaped."""
    return _LINE_BREAK.sub(lambda found: repr(found[0])[1:-1], text)


_SYSTEM_HINTS = {
    errno.ENOSPC: "free some space, or choose another place, and run the command again",
    errno.EDQUOT: "free some space, or choose another place, and run the command again",
    errno.EACCES: "change its permissions, or choose another place",
    errno.EPERM: "change its permissions, or choose another place",
    errno.EROFS: "choose another place",
    errno.EEXIST: "a file is in the way; choose another place, or move it",
    errno.ENOTDIR: "a file is where a folder should be; choose another place, or move it",
    errno.EISDIR: "a folder is where a file should be; choose another place, or move it",
    errno.ENAMETOOLONG: "use shorter names",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f), or choose another place",
    errno.EMFILE: "raise the limit on open files (ulimit -n) and run the command again",
    errno.ELOOP: "links lead in a circle; remove one",
    errno.ENXIO: "it is a device or pipe; name a regular file",
}
_PASSING_HINTS = {
    errno.EIO: "the disk or its connection fails; look at `dmesg`, then run the command again",
    errno.ESTALE: "the network file system has lost it; mount it again and run the command again",
    errno.ETIMEDOUT: "the network file system does not answer; run the command again when it does",
    errno.ENFILE: "the machine has no more open files to give; end other programs",
    errno.ENODEV: "its file system does not allow memory maps; copy it to another one",
    errno.EBUSY: "another program holds it; end that, or choose another place",
    errno.ENOENT: "it is not there, or was removed meanwhile; check the path and run again",
    errno.ENOMEM: "the machine has no memory left; end other programs, or use smaller batches",
}
"""What another try, or another machine, may not meet."""


def as_user_error(error: OSError, *, passing: bool = False) -> UserError | None:
    """What the system refused and the user can fix, such as a full disk; None for anything else.

    Args:
        error: of the system.
        passing: also what a restart may mend by itself: for commands that are over with it.
    """
    number = error.errno or 0
    hint = _SYSTEM_HINTS.get(number) or (_PASSING_HINTS.get(number) if passing else None)
    if hint is None:
        return None
    name = error.filename2 or error.filename
    where = f"{name}: " if name else ""
    return UserError(f"{where}{error.strerror}; {hint}")


_NO_MEMORY = ("can't allocate memory", "not enough memory", "CUDA out of memory",
              "array is too big", "Storage size calculation overflowed")  # fmt: skip


def as_memory_error(error: Exception) -> UserError | None:
    """What did not fit into memory, as the user's error; None for anything else."""
    text = str(error)
    if not isinstance(error, MemoryError) and not any(mark in text for mark in _NO_MEMORY):
        return None
    reason = (text.splitlines() or [type(error).__name__])[0][:200]
    return UserError(
        f"the memory of this machine does not suffice ({reason}); use smaller batches, images,"
        " shards or networks"
    )


class DataError(UserError):
    """A dataset on disk or in storage is missing, damaged or not the one expected."""


def missing_object(url: str, path: str) -> DataError:
    """There is nothing at `path` of the storage `url`."""
    return DataError(f"{url}/{path} does not exist; check the path and that it was written")


def checked_range(url: str, path: str, offset: int, size: int, data: bytes) -> bytes:
    """`data`, if it is `size` bytes long; raises DataError if not."""
    if len(data) != size:
        raise DataError(
            f"{url}/{path} has {len(data)} bytes from {offset} where {size} were expected; "
            "the file is shorter than its index says: verify or restore the dataset"
        )
    return data
