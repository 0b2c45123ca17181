"""The one error type that means: the user can fix this."""


class UserError(ValueError):
    """Something the user gave is wrong; the message is one line a user can act on.

    It says what was found, what is allowed and what to do. The command line prints it
    without a traceback and exits with code 2.
    """


class DataError(UserError):
    """A dataset on disk or in storage is missing, damaged or not the one expected."""
