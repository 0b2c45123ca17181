"""What `ifsq jobs` shows: every job with its progress, or why it waits; and tidying up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.jobs.state import FINISHED, QUEUED, RUNNING, STARTING, JobState
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.events import parse_time
from launchers.on_kubernetes.logs import PodLog, submitter_pods
from launchers.on_kubernetes.reasons import waiting_reasons
from launchers.on_kubernetes.state import rayjob_state

_TAIL_LINES = 50
_PARALLEL = 8
_SHOWN_CHARACTERS = 100
_PROGRESS = re.compile(r"  (?P<done>\d+)/(?P<total>\d+) (?P<unit>[a-z]+)(?:  |$)")
_ETA = re.compile(r"  eta (\S+)")
_GOODPUT = re.compile(r"  goodput ([0-9.]+)")


def overview(cluster: KubernetesCluster) -> list[tuple[JobState, str]]:
    """Every job of this program, newest first, with one fact about it.

    Raises:
        UserError: access is denied.
    """
    jobs = cluster.list_raw()
    with ThreadPoolExecutor(_PARALLEL) as pool:
        extras = list(pool.map(lambda job: _extra(cluster, job), jobs))
    return [(rayjob_state(job), extra) for job, extra in zip(jobs, extras, strict=True)]


def _extra(cluster: KubernetesCluster, job: dict[str, Any]) -> str:
    """Progress of a running job, the newest reason of a waiting one."""
    state = rayjob_state(job)
    try:
        if state.phase == RUNNING:
            pods = submitter_pods(cluster, state.name)
            log = PodLog(cluster, pods[-1]).lines(follow=False, tail=_TAIL_LINES) if pods else []
            return progress_text(log)
        if state.phase in (QUEUED, STARTING):
            reasons = waiting_reasons(cluster, job)
            place = [reason for reason in reasons if reason.reason == "Position"]
            shown = [*place, *(reason for reason in reasons if reason not in place)][:2]
            return "; ".join(reason.line()[:_SHOWN_CHARACTERS] for reason in shown)
    except (ConnectionLost, UserError):
        pass
    return ""


def progress_text(lines: Iterable[str]) -> str:
    """The last progress line as ``42% of 600 steps, eta 1m57s, goodput 0.93``; empty if none."""
    text = ""
    for line in lines:
        match = _PROGRESS.search(line)
        if match is None:
            continue
        done, total = int(match["done"]), int(match["total"])
        parts = [f"{100 * done // max(total, 1)}% of {total} {match['unit']}"]
        if eta := _ETA.search(line):
            parts.append(f"eta {eta[1]}")
        if goodput := _GOODPUT.search(line):
            parts.append(f"goodput {goodput[1]}")
        text = ", ".join(parts)
    return text


def clean_jobs(cluster: KubernetesCluster, older_than_hours: float) -> list[str]:
    """Remove the records of finished jobs; what they wrote stays.

    Args:
        cluster: where they are.
        older_than_hours: since they ended, or were made where that is not known.

    Returns:
        Names of the removed ones.

    Raises:
        UserError: access is denied.
    """
    limit = datetime.now(UTC) - timedelta(hours=older_than_hours)
    removed = []
    for job in cluster.list_raw():
        state = rayjob_state(job)
        ended = (job.get("status") or {}).get("endTime") or job["metadata"].get("creationTimestamp")
        if state.phase in FINISHED and parse_time(ended) <= limit:
            cluster.cancel(state.name)
            removed.append(state.name)
    return removed
