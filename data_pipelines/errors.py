"""The errors that mean: the user can fix this."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one line a user can act on.

    It says what was found, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


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
