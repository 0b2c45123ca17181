"""Jobs on any running Ray cluster, through Ray's job API."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost, Patience
from launchers.jobs.request import ENTRYPOINT, WORKDIR_VARIABLE, JobRequest
from launchers.jobs.state import FAILED, GONE, RUNNING, STARTING, SUCCEEDED, JobState
from launchers.jobs.verdict import JobFailed, failure_text
from launchers.on_ray.job_server import JobServer, NoSuchJob

Answer = TypeVar("Answer")
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
        patience_seconds: how long following a job outlives a job server that does not answer.

    Raises:
        UserError: nothing answers there.
    """

    def __init__(self, address: str, patience_seconds: float = 600) -> None:
        self._server = JobServer(address)
        self.address, self.patience_seconds = address, patience_seconds

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
            self._server.submit(
                entrypoint=ENTRYPOINT,
                submission_id=request.name,
                runtime_env={"env_vars": env},
                metadata={"managed-by": "ifsq", "kind": request.recipe.kind},
            )
        except (ConnectionLost, NoSuchJob) as error:
            if "No available agent" in str(error) and not last:
                return False
            raise UserError(
                f"the Ray cluster did not take the job: {error}; see whether it has it:"
                f" {self.look_again(request.name, 'status')}"
            ) from error
        return True

    def look_again(self, name: str, command: str = "logs --follow") -> str:
        """The command that comes back to a job of this cluster."""
        verb, *options = command.split()
        return " ".join(["ifsq", verb, name, *options, "--to", "ray", "--address", self.address])

    def list_jobs(self) -> list[JobState]:
        """Submitted jobs, newest first.

        Raises:
            UserError: the job server does not answer.
        """
        found = self._ask("", self._server.jobs)
        jobs = [job for job in found if job.submission_id]
        jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
        return [_state(job) for job in jobs]

    def state(self, name: str) -> JobState:
        """Of one job.

        Raises:
            UserError: there is none, or the job server does not answer.
        """
        return self._ask(name, lambda: _state(self._server.job(name)))

    def logs(self, name: str) -> str:
        """Its output so far.

        Raises:
            UserError: there is no such job, or the job server does not answer.
        """
        return self._ask(name, lambda: self._server.output(name))

    def cancel(self, name: str) -> None:
        """End a job; what it wrote stays.

        Raises:
            UserError: there is no such job, or the job server does not answer.
        """
        self._ask(name, lambda: self._server.stop(name))

    def _ask(self, name: str, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except NoSuchJob as error:
            raise _missing(name) from error
        except ConnectionLost as error:
            raise UserError(
                f"the Ray job server at '{self.address}' does not answer ({error});"
                " is the cluster's head up?"
            ) from error

    def follow(self, name: str, say: Callable[[str], None]) -> None:
        """Show a job's states and output until it has finished.

        A job server that does not answer is asked again for `patience_seconds`.

        Raises:
            JobFailed: it failed, was stopped, or the cluster does not know it any more.
            UserError: there is no such job, or the job server stays away: the job may go on.
        """
        said = _Said(name, say)
        server = f"the Ray job server at {self.address}"
        patience = Patience(self.patience_seconds, self.look_again(name), server)
        while True:
            try:
                state, text = self._look(name)
            except ConnectionLost as error:
                if patience.lost(error):
                    say(f"[{name}] {server} cannot be reached ({error}); asking again")
            except NoSuchJob as error:
                raise _missing(name) if said.state is None else _forgotten(name) from error
            else:
                if patience.found():
                    say(f"[{name}] {server} answers again")
                if said.all_of(state, text):
                    return
            time.sleep(_POLL_SECONDS)

    def _look(self, name: str) -> tuple[JobState, str]:
        """A job's state and its output so far."""
        state = _state(self._server.job(name))
        try:
            return state, self._server.output(name)
        except ConnectionLost:
            # The node that has the output of a job that has ended may be gone for good.
            if state.finished:
                return state, ""
            raise


class _Said:
    """What has been shown of a job, and its verdict."""

    def __init__(self, name: str, say: Callable[[str], None]) -> None:
        self._name, self._say = name, say
        self._lines = 0
        self.state: JobState | None = None

    def all_of(self, state: JobState, text: str) -> bool:
        """Say what is new; True when the job has succeeded.

        Raises:
            JobFailed: it failed or was stopped.
        """
        if state != self.state:
            self._say(f"[{self._name}] {state.line()}")
        self.state = state
        lines = text.splitlines()
        # The last line may be unfinished while the job runs.
        ready = len(lines) if state.finished else max(len(lines) - 1, self._lines)
        for line in lines[self._lines : ready]:
            self._say(line)
        self._lines = ready
        if state.phase == GONE:
            raise JobFailed(f"job '{self._name}' was stopped before it finished")
        if state.phase == FAILED:
            raise JobFailed(failure_text(state, lines))
        return state.finished


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


def _forgotten(name: str) -> JobFailed:
    return JobFailed(
        f"the Ray cluster does not know job '{name}' any more: its head was started again,"
        " which ends its jobs; what the job wrote is kept, submitting it again goes on"
    )
