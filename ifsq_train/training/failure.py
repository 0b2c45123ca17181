"""Which rank failed first, kept in the run folder: its neighbours only time out afterwards."""

from __future__ import annotations

import contextlib
import json
import logging
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter

from data_pipelines.documents import checked, read_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.storage.local import name_if_free

FOLDER = "failures"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """The first failure of one start of the worker group.

    Attributes:
        rank: who failed.
        user_error: whether the message is for the user to act on; a restart cannot mend it.
        message: one line, or one a fault.
        detail: traceback or stack.
        wall_time: Unix time.
        kind: class of a user's error, such as ``DataError``.
    """

    rank: int
    user_error: bool
    message: str
    detail: str
    wall_time: float
    kind: str = ""

    def as_user_error(self) -> UserError:
        """The user's error as the class it was raised as, as far as that is known here."""
        kind = DataError if self.kind == DataError.__name__ else UserError
        return kind(*self.message.splitlines())


_FAILURE: TypeAdapter[Failure] = TypeAdapter(Failure)


class FailureLog:
    """First failures of a launch, one file per start of the worker group.

    Args:
        folder: the run's folder.
        launch_id: names the launch; a launch may start its workers several times.
    """

    def __init__(self, folder: Path, launch_id: str) -> None:
        self._folder, self._launch_id = folder / FOLDER, launch_id

    def record(self, attempt: str, rank: int, error: BaseException) -> None:
        """Keep `error`, unless another rank of the same start was earlier."""
        user_error = isinstance(error, UserError)
        self.record_text(
            attempt,
            rank,
            str(error) if user_error else repr(error),
            "".join(traceback.format_exception(error)),
            user_error=user_error,
            kind=type(error).__name__ if user_error else "",
        )

    def record_text(
        self,
        attempt: str,
        rank: int,
        message: str,
        detail: str,
        *,
        user_error: bool = False,
        kind: str = "",
    ) -> None:
        """As `record`, for what is not an exception."""
        failure = Failure(rank, user_error, message, detail, time.time(), kind)
        path = self._folder / f"{self._launch_id}-{attempt}.json"
        # Complete under a name of its own first: a reader never sees half of it.
        own = path.with_suffix(f".rank{rank:05d}.tmp")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            own.write_text(json.dumps(asdict(failure)))
            name_if_free(own, path)
        except OSError as error:
            # What failed is said all the same; a full disk is often the failure itself.
            logger.warning("%s: a failure could not be kept (%s)", path, error.strerror)
        finally:
            with contextlib.suppress(OSError):
                own.unlink(missing_ok=True)

    def last(self) -> Failure | None:
        """First failure of the latest start that failed; None if none did."""
        read = [self._read(path) for path in self._folder.glob(f"{self._launch_id}-*.json")]
        found = [failure for failure in read if failure is not None]
        return max(found, key=lambda failure: failure.wall_time, default=None)

    def unmendable(self) -> Failure | None:
        """A failure that a restart cannot mend, if there was one."""
        last = self.last()
        return last if last is not None and last.user_error else None

    def clear(self) -> None:
        """Forget the launch's failures: it has succeeded in spite of them."""
        for path in self._folder.glob(f"{self._launch_id}-*"):
            path.unlink(missing_ok=True)

    @staticmethod
    def _read(path: Path) -> Failure | None:
        try:
            return checked(_FAILURE, read_json(path), str(path))
        except UserError as error:
            # Why a start failed is lost; that it failed is known without it.
            logger.warning("%s", error)
            return None
