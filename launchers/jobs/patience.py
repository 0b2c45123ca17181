"""How long a program that follows a job outlives a server that does not answer."""

from __future__ import annotations

import time
from dataclasses import dataclass

from data_pipelines.errors import UserError

REFUSAL_PATIENCE_SECONDS = 60.0
"""How long a refusal of what was granted before is taken for a server that is starting."""


class ConnectionLost(Exception):
    """The server that knows the jobs cannot be reached now, or does not know its users yet."""


class Refused(ConnectionLost):
    """Access that was granted before is denied; the message says what."""


@dataclass
class Patience:
    """How long the server has been away, and when that is too long.

    Args:
        limit_seconds: for a server that does not answer.
        look_again: command that comes back to the job.
        server: what it is called in messages.
    """

    limit_seconds: float
    look_again: str
    server: str = "the API server"
    since: float | None = None

    def lost(self, error: ConnectionLost) -> bool:
        """Note a lost connection; True if it is the first after good times.

        Raises:
            UserError: it has been away too long, or access is denied for good.
        """
        first = self.since is None
        if self.since is None:
            self.since = time.monotonic()
        away = time.monotonic() - self.since
        if isinstance(error, Refused) and away > min(self.limit_seconds, REFUSAL_PATIENCE_SECONDS):
            raise UserError(str(error)) from error
        if away > self.limit_seconds:
            raise UserError(
                f"{self.server} was away for {self.limit_seconds:.0f} s ({error}); the job may"
                f" still run, look later: {self.look_again}"
            ) from error
        return first

    def found(self) -> bool:
        """Note an answer; True if the server had been away."""
        away, self.since = self.since is not None, None
        return away
