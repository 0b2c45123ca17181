"""What `ifsq status` says about a job: state, why it waits, how it failed."""

from __future__ import annotations

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.jobs.state import FAILED, JobState
from launchers.jobs.verdict import failure_lines
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.logs import PodLog, is_noise, submitter_pods
from launchers.on_kubernetes.rayjob import CODE_ANNOTATION, IMAGE_ANNOTATION, RUN_ANNOTATION
from launchers.on_kubernetes.reasons import waiting_reasons
from launchers.on_kubernetes.state import rayjob_state

_SHOWN_REASONS = 8
_TAIL_LINES = 200
_NOTES = (("image", IMAGE_ANNOTATION), ("code", CODE_ANNOTATION), ("output", RUN_ANNOTATION))


def describe_job(cluster: KubernetesCluster, name: str) -> tuple[JobState, list[tuple[str, str]]]:
    """State of a job, and rows of title and value for a person.

    Args:
        cluster: where it is.
        name: of the job.

    Raises:
        UserError: there is none, or access is denied.
    """
    job = cluster.get(name)
    state = rayjob_state(job)
    rows = state.rows()
    notes = job["metadata"].get("annotations") or {}
    rows += [(key, notes[note]) for key, note in _NOTES if notes.get(note)]
    if not state.finished:
        reasons = waiting_reasons(cluster, job)[:_SHOWN_REASONS]
        rows += [("reason", reason.line()) for reason in reasons]
    if state.phase == FAILED:
        rows += [("said", line) for line in failure_lines(_last_lines(cluster, name))]
    return state, rows


def _last_lines(cluster: KubernetesCluster, name: str) -> list[str]:
    """Of the newest attempt; empty where they cannot be read."""
    try:
        pods = submitter_pods(cluster, name)
        lines = PodLog(cluster, pods[-1]).lines(follow=False, tail=_TAIL_LINES) if pods else []
        return [line for line in lines if not is_noise(line)]
    except (ConnectionLost, UserError):
        return []
