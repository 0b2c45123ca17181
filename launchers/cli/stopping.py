"""SIGINT and SIGTERM: what is kept and how to go on, in one line, and the usual exit code."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

from typer.core import TyperGroup

_AGAIN = "; run the same command again to go on"
_KEPT = {
    "train": f"the run's last checkpoint is kept{_AGAIN}",
    "precompute": f"finished token shards are kept{_AGAIN}",
    "sample": f"finished parts are kept{_AGAIN}",
    "study": f"finished stages are kept{_AGAIN}",
    "demo": f"finished stages are kept{_AGAIN}",
    "pack": f"finished shards are kept{_AGAIN}",
    "index": f"finished shards are kept{_AGAIN}",
    "copy": f"files that arrived are kept{_AGAIN}",
    "run-job": "what the job has finished is kept; it goes on when it is started again",
    "evaluate": "nothing was written; run the same command again, it begins anew",
}
_OTHERS = "nothing that was there has changed; run the command again"
_RAYS_EXIT_CODE = signal.SIGTERM
"""Inside a Ray session SIGTERM is Ray's, which leaves with this code."""


class Stopped(BaseException):
    """The user, or whoever runs the machine, has ended this command.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Commands(TyperGroup):
    """A group whose commands let Ctrl-C through, which click would turn into "Aborted!"."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Stopped(signal.SIGINT) from None
        except SystemExit as ended:
            if ended.code == _RAYS_EXIT_CODE:
                raise Stopped(signal.SIGTERM) from None
            raise


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Inside, a first SIGTERM unwinds what runs, so that temporary files go; a second ends at once.

    Commands that save their state first have handlers of their own.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Stopped(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(stopped: Stopped, words: list[str]) -> NoReturn:
    """Say what is kept and end with 128 plus the signal's number.

    Args:
        stopped: why.
        words: of the command line, without the program's name.
    """
    kept = next((_KEPT[word] for word in words[:2] if word in _KEPT), _OTHERS)
    sys.stderr.write(f"stopped by {stopped}: {kept}\n")
    sys.exit(128 + stopped.number)
