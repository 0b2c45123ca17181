"""Errors of Ray tasks and actors, unwrapped to the exception raised inside."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import UserError, as_user_error


def plain_result(ray: Any, call: Any) -> Any:
    """The result of a remote call.

    Args:
        ray: an initialised Ray.
        call: reference of the call's result.

    Raises:
        UserError: raised inside, as the class it was there (DataError, CheckpointError, ...), or
            something the system refused there and the user can fix, such as a full disk.
        RayTaskError: any other error of the call's own code.
        RayError: the process or the result was lost.
    """
    from ray.exceptions import RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as error:
        found = user_error_in(error)
        if found is None:
            raise
        raise found from None


def user_error_in(error: BaseException) -> UserError | None:
    """The user's mistake behind an error, however deep Ray wrapped it; None if there is none."""
    from ray.exceptions import RayTaskError

    cause: BaseException | None = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause if isinstance(cause.cause, BaseException) else None
    if isinstance(cause, UserError):
        return cause
    return as_user_error(cause) if isinstance(cause, OSError) else None
