"""Ending a job that no retry can mend.

KubeRay retries every Ray job that fails, whatever its exit code
(``ray-operator/controllers/ray/rayjob_controller.go``, checkBackoffLimitAndUpdateStatusIfNeeded),
but a stopped one is Complete and is not retried. So a job that meets a user's mistake stops itself
through Ray's job API. Its state in `kubectl get rayjob` is STOPPED, which is not success either.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launchers.jobs.request import STOP_ON_REFUSAL_VARIABLE

DASHBOARD = "http://127.0.0.1:8265"
"""Ray runs a job's entrypoint on the head, beside its dashboard."""
_WAIT_SECONDS = 60.0


def stop_own_job(wait_seconds: float = _WAIT_SECONDS, say: Callable[[str], None] = print) -> bool:
    """Stop the Ray job this process is the entrypoint of, and wait for the end.

    Ray answers at once and ends the process some time later; a process that exits by itself before
    that would be a failed job.

    Args:
        wait_seconds: how long to wait for being ended.
        say: told what cannot be done.

    Returns:
        False if this process is no such entrypoint, or the job could not be stopped.
    """
    job_id = submission_id()
    if os.environ.get(STOP_ON_REFUSAL_VARIABLE) != "1" or job_id is None:
        return False
    from ray.job_submission import JobSubmissionClient

    with _ended_without_a_word():
        try:
            JobSubmissionClient(DASHBOARD).stop_job(job_id)
        except Exception as error:
            say(f"the job cannot be stopped and may be retried: {type(error).__name__}: {error}")
            return False
        time.sleep(wait_seconds)
    return True


@contextmanager
def _ended_without_a_word() -> Iterator[None]:
    """Inside, SIGTERM ends the process at once: the mistake is its last word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def submission_id() -> str | None:
    """Of the Ray job this process is the entrypoint of; None elsewhere."""
    try:
        settings = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        return settings["metadata"]["job_submission_id"]
    except (KeyError, TypeError, json.JSONDecodeError):
        return None
