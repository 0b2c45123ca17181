"""Jobs on any running Ray cluster, through Ray's job API."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.request import ENTRYPOINT, WORKDIR_VARIABLE, JobRequest
from launchers.jobs.state import FAILED, GONE, RUNNING, STARTING, SUCCEEDED, JobState
from launchers.jobs.verdict import JobFailed, failure_text
from launchers.on_ray.cluster import import_ray

_PHASES = {
    "PENDING": STARTING,
    "RUNNING": RUNNING,
    "SUCCEEDED": SUCCEEDED,
    "FAILED": FAILED,
    "STOPPED": GONE,
}
_POLL_SECONDS = 1.0
_AGENT_SECONDS = 60.0
"""How long a cluster that has just started may take before it accepts jobs."""


class RayCluster:
    """Access to a cluster's job server.

    Args:
        address: of the dashboard, such as ``http://head:8265``.

    Raises:
        UserError: nothing answers there.
    """

    def __init__(self, address: str) -> None:
        import_ray()
        from ray.job_submission import JobSubmissionClient

        try:
            self._client = JobSubmissionClient(address)
        except (ConnectionError, RuntimeError) as error:
            raise UserError(
                f"no Ray job server answers at '{address}'; give the dashboard's address,"
                " such as --address http://HEAD:8265"
            ) from error
        self.address = address

    def submit(self, request: JobRequest, cpus_per_node: float, workdir: str | None) -> None:
        """Start a job.

        Args:
            request: what to run; image, queue, storage and secrets are Kubernetes' and unused.
            cpus_per_node: CPUs to use on each node.
            workdir: folder that relative paths of the recipe are below, on every node.

        Raises:
            UserError: the name is taken, or the cluster refuses the job.
        """
        if any(state.name == request.name for state in self.list_jobs()):
            raise UserError(
                f"a job '{request.name}' exists already on this cluster; choose another --name"
            )
        env = {**request.env, **request.job_environment(cpus_per_node)}
        if workdir is not None:
            env[WORKDIR_VARIABLE] = workdir
        deadline = time.monotonic() + _AGENT_SECONDS
        while not self._try_to_submit(request, env, last=time.monotonic() > deadline):
            time.sleep(_POLL_SECONDS)

    def _try_to_submit(self, request: JobRequest, env: dict[str, str], *, last: bool) -> bool:
        """Submit; False if the cluster has just started and cannot take jobs yet."""
        try:
            self._client.submit_job(
                entrypoint=ENTRYPOINT,
                submission_id=request.name,
                runtime_env={"env_vars": env},
                metadata={"managed-by": "ifsq", "kind": request.recipe.kind},
            )
        except RuntimeError as error:
            if "No available agent" in str(error) and not last:
                return False
            raise UserError(
                f"the Ray cluster refuses the job: {' '.join(str(error).split())[:400]}"
            ) from error
        return True

    def list_jobs(self) -> list[JobState]:
        """Submitted jobs, newest first."""
        jobs = [job for job in self._client.list_jobs() if job.submission_id]
        jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [_state(job) for job in jobs]

    def state(self, name: str) -> JobState:
        """Of one job.

        Raises:
            UserError: there is none.
        """
        try:
            return _state(self._client.get_job_info(name))
        except RuntimeError as error:
            raise _missing(name) from error

    def logs(self, name: str) -> str:
        """Its output so far.

        Raises:
            UserError: there is no such job.
        """
        try:
            return self._client.get_job_logs(name)
        except RuntimeError as error:
            raise _missing(name) from error

    def cancel(self, name: str) -> None:
        """End a job; what it wrote stays.

        Raises:
            UserError: there is no such job.
        """
        try:
            self._client.stop_job(name)
        except RuntimeError as error:
            raise _missing(name) from error

    def follow(self, name: str, say: Callable[[str], None]) -> None:
        """Show a job's states and output until it has finished.

        Raises:
            JobFailed: it failed or was stopped.
            UserError: there is no such job.
        """
        shown, last = 0, None
        while True:
            state = self.state(name)
            if state != last:
                say(f"[{name}] {state.line()}")
            last = state
            lines = self.logs(name).splitlines()
            # The last line may be unfinished while the job runs.
            ready = len(lines) if state.finished else max(len(lines) - 1, shown)
            for line in lines[shown:ready]:
                say(line)
            shown = ready
            if state.phase == GONE:
                raise JobFailed(f"job '{name}' was stopped before it finished")
            if state.phase == FAILED:
                raise JobFailed(failure_text(state, lines))
            if state.finished:
                return
            time.sleep(_POLL_SECONDS)


def _state(job: Any) -> JobState:
    started = datetime.fromtimestamp((job.start_time or 0) / 1000, UTC)
    detail = " ".join((job.message or "").split())[:300]
    phase = _PHASES[str(job.status.value)]
    return JobState(
        name=job.submission_id,
        phase=phase,
        detail=detail if phase == FAILED else "",
        created=started.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _missing(name: str) -> UserError:
    return UserError(f"no job '{name}' on this Ray cluster; `ifsq jobs --to ray` lists them")
