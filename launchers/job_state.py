"""A job's state in words that are the same for every kind of cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

QUEUED, STARTING, RUNNING = "queued", "starting", "running"
RETRYING, SUCCEEDED, FAILED = "retrying", "succeeded", "failed"
GONE = "deleted"
FINISHED = (SUCCEEDED, FAILED, GONE)

_PHASES = {
    "": STARTING,
    "Initializing": STARTING,
    "Waiting": STARTING,
    "Running": RUNNING,
    "Suspending": QUEUED,
    "Suspended": QUEUED,
    "Retrying": RETRYING,
    "Complete": SUCCEEDED,
    "Failed": FAILED,
    "ValidationFailed": FAILED,
}


@dataclass(frozen=True)
class JobState:
    """What a cluster says about a job.

    Attributes:
        name: of the job.
        phase: queued, starting, running, retrying, succeeded, failed or deleted.
        detail: why, where the cluster says so.
        attempts: Ray clusters that failed so far.
        created: ISO time of submission, or empty.
        nodes: worker nodes asked for; 0 where unknown.
        queue: Kueue queue, or empty.
        dashboard: address of Ray's dashboard inside the cluster, or empty.
    """

    name: str
    phase: str
    detail: str = ""
    attempts: int = 0
    created: str = ""
    nodes: int = 0
    queue: str = ""
    dashboard: str = ""

    @property
    def finished(self) -> bool:
        """Nothing will change any more."""
        return self.phase in FINISHED

    def line(self) -> str:
        """One line for a person."""
        text = self.phase
        if self.phase == QUEUED and self.queue:
            text += f" in {self.queue}"
        if self.attempts:
            text += f" ({self.attempts} failed {'attempt' if self.attempts == 1 else 'attempts'})"
        return f"{text}: {self.detail}" if self.detail else text


def rayjob_state(job: dict[str, Any]) -> JobState:
    """The state of a RayJob object as the API server gives it."""
    status, spec, meta = job.get("status") or {}, job["spec"], job["metadata"]
    phase = _PHASES.get(status.get("jobDeploymentStatus") or "", STARTING)
    if spec.get("suspend") and phase not in FINISHED:
        phase = QUEUED
    groups = (spec.get("rayClusterSpec") or {}).get("workerGroupSpecs") or []
    detail = ""
    if phase in (FAILED, RETRYING):
        detail = ": ".join(part for part in (status.get("reason"), status.get("message")) if part)
    if meta.get("deletionTimestamp"):
        phase, detail = GONE, ""
    return JobState(
        name=meta["name"],
        phase=phase,
        detail=detail,
        attempts=int(status.get("failed") or 0),
        created=meta.get("creationTimestamp") or "",
        nodes=sum(int(group.get("replicas") or 0) for group in groups),
        queue=(meta.get("labels") or {}).get("kueue.x-k8s.io/queue-name", ""),
        dashboard=status.get("dashboardURL") or "",
    )
