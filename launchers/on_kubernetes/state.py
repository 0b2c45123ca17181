"""The state of a RayJob in the words of `ifsq jobs`."""

from __future__ import annotations

from typing import Any

from launchers.jobs.state import (
    FAILED,
    FINISHED,
    GONE,
    QUEUED,
    RETRYING,
    RUNNING,
    STARTING,
    SUCCEEDED,
    JobState,
)

_LONGEST_DETAIL = 300
STOPPED = "STOPPED"
NOT_RETRIED = "stopped without a retry, as a mistake of its recipe or data would meet it again"
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
        # Ray's message holds the last lines of the output, which are shown from the output itself.
        detail = " ".join(detail.split())[:_LONGEST_DETAIL]
    if phase == SUCCEEDED and status.get("jobStatus") == STOPPED:
        # KubeRay calls a stopped Ray job Complete and does not retry it: see `on_ray.refusal`.
        phase, detail = FAILED, NOT_RETRIED
    if meta.get("deletionTimestamp") and phase not in FINISHED:
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
