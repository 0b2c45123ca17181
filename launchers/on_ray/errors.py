"""Errors of Ray tasks and actors, unwrapped to the exception raised inside."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import UserError


def plain_errors(ray: Any, call: Any) -> Any:
    """The result; a user's mistake found elsewhere is raised as itself."""
    from ray.exceptions import RayTaskError

    try:
        return ray.get(call)
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
