"""Ray's job server over HTTP: every request ends, and every failure is said in plain words."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.on_ray.cluster import import_ray

CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 60.0
Answer = TypeVar("Answer")
_STATUS = re.compile(r"status code (\d+)")


class NoSuchJob(Exception):
    """The job server answers, and knows no job of this name."""


class JobServer:
    """Ray's job API at one address.

    Args:
        address: of the dashboard, such as ``http://head:8265``.

    Raises:
        UserError: nothing answers there, it is not Ray's, or it does not let this program in.
    """

    def __init__(self, address: str) -> None:
        scheme, separator, _ = address.partition("://")
        if separator and scheme not in ("http", "https"):
            raise UserError(
                f"no Ray job server answers at '{address}': jobs go to the dashboard; give its"
                " address, such as --address http://HEAD:8265"
            )
        import_ray()
        from ray.exceptions import AuthenticationError
        from ray.job_submission import JobSubmissionClient

        class Client(JobSubmissionClient):
            """Without a limit, a request to a dashboard that hangs would never end."""

            def _do_request(self, *args: Any, **options: Any) -> Any:
                options.setdefault("timeout", (CONNECT_SECONDS, ANSWER_SECONDS))
                return super()._do_request(*args, **options)

        self.address = address
        try:
            self._client = _ask(address, lambda: Client(address))
        except (ConnectionLost, NoSuchJob, UserError, ValueError, AssertionError) as error:
            if isinstance(error.__cause__, AuthenticationError):
                raise
            raise UserError(
                f"no Ray job server answers at '{address}' ({error}); give the dashboard's address,"
                " such as --address http://HEAD:8265"
            ) from error

    def submit(self, **job: Any) -> str:
        """Start a job; as ``JobSubmissionClient.submit_job``."""
        return _ask(self.address, lambda: self._client.submit_job(**job))

    def jobs(self) -> list[Any]:
        """Ray's details of all jobs."""
        return _ask(self.address, self._client.list_jobs)

    def job(self, name: str) -> Any:
        """Ray's details of one job.

        Raises:
            NoSuchJob: there is none.
        """
        return _ask(self.address, lambda: self._client.get_job_info(name))

    def output(self, name: str) -> str:
        """What a job has written so far.

        Raises:
            NoSuchJob: there is none.
        """
        return _ask(self.address, lambda: self._client.get_job_logs(name))

    def stop(self, name: str) -> None:
        """End a job.

        Raises:
            NoSuchJob: there is none.
        """
        _ask(self.address, lambda: self._client.stop_job(name))


def _ask(address: str, call: Callable[[], Answer]) -> Answer:
    """The answer to a request.

    Raises:
        ConnectionLost: there is none, or not now (HTTP 5xx).
        NoSuchJob: HTTP 404.
        UserError: the token does not fit, or the request is refused.
    """
    import requests
    from ray.exceptions import AuthenticationError

    try:
        return call()
    except AuthenticationError as error:
        raise UserError(
            f"the Ray job server at '{address}' does not let this program in: check the token"
            " (RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH)"
        ) from error
    except (requests.RequestException, ConnectionError) as error:
        raise ConnectionLost(_reason(error)) from error
    except RuntimeError as error:
        found = _STATUS.search(str(error))
        status = int(found[1]) if found else 0
        text = " ".join(str(error).split())[:400]
        if status == 404:
            raise NoSuchJob(text) from error
        if status >= 500:
            raise ConnectionLost(text) from error
        raise UserError(f"the Ray job server at '{address}' refuses: {text}") from error


def _reason(error: Exception) -> str:
    """Why there is no answer, in a few words."""
    import requests

    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return "the answer is not Ray's"
    return "connection refused" if "refused" in str(error) else "no connection"
