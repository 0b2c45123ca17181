"""Why a training under Ray Train ended: the rank that failed first, in its own words."""

from __future__ import annotations

from pathlib import Path

from ifsq_train.training.failure import FailureLog


class TrainingFailed(Exception):
    """A run ended without finishing; the message names the first rank that failed.

    Attributes:
        rank: the rank that failed first; None where no rank left a word.
    """

    def __init__(self, message: str, rank: int | None = None) -> None:
        super().__init__(message)
        self.rank = rank


def explain(folder: Path, launch_id: str, error: Exception) -> Exception:
    """What the user sees last: the error of the rank that failed first.

    Args:
        folder: of the run.
        launch_id: names the launch.
        error: as Ray Train raised it.
    """
    from ray.train import ControllerError

    failure = FailureLog(folder, launch_id).last()
    if failure is not None and failure.user_error:
        return failure.as_user_error()
    if isinstance(error, ControllerError):
        # The ranks' failures, if there are any, were survived earlier.
        return TrainingFailed(f"Ray could not keep the workers running: {error}")
    dead = killed_ranks(error)
    if dead and (failure is None or failure.rank not in dead):
        # Its neighbours record that the connection closed; the cause left no word.
        names = ", ".join(map(str, dead))
        return TrainingFailed(
            f"the process of rank {names} died without an error of its own: killed from outside,"
            " out of memory, or its node is gone; the node's system log says which",
            dead[0],
        )
    if failure is None:
        return TrainingFailed(f"training failed: {error}")
    return TrainingFailed(
        f"{failure.detail.rstrip()}\nrank {failure.rank} failed first: {failure.message}",
        failure.rank,
    )


def killed_ranks(error: Exception) -> list[int]:
    """Ranks whose process ended without raising anything, as Ray saw it."""
    from ray.exceptions import RayActorError

    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    causes = {rank: getattr(e, "health_check_failure", e) for rank, e in failures.items()}
    return sorted(rank for rank, cause in causes.items() if isinstance(cause, RayActorError))
