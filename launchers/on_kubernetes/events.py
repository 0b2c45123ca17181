"""Events about one job: of whatever recorder, of this job only, aggregated by reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

_SUFFIX = "[a-z0-9]{5}"
_LONGEST_PREFIX = 50
_CLOCK_SLACK = timedelta(seconds=5)
PULL, NOT_SCHEDULED = "ImagePull", "FailedScheduling"


@dataclass(frozen=True)
class Reason:
    """Why a job waits or fails, as some part of the cluster says it.

    Attributes:
        about: what it is about, such as ``worker pods``.
        reason: the cluster's short word.
        message: its sentence.
        when: last time it was said; UTC.
        objects: names of the objects it was said of.
    """

    about: str
    reason: str
    message: str
    when: datetime
    objects: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for reasons a person would call the same: numbers and addresses may differ."""
        return self.about, self.reason, re.sub(r"[0-9]+", "0", self.message)

    def line(self) -> str:
        """One line for a person."""
        count = f" ({len(self.objects)})" if len(self.objects) > 1 else ""
        return f"{self.about}{count}: {self.reason}: {self.message}"


class JobObjects:
    """Recognizes the objects of one job by their kind and name.

    Names follow KubeRay (``utils/util.go``, PodName: prefixes are cut at 50 characters) and Kueue
    (``jobframework/workload_names.go``: kind, name, five characters of a hash).

    Args:
        job: the RayJob as the API server gives it.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        meta, spec = job["metadata"], job["spec"]
        self.name, self.uid = meta["name"], meta.get("uid", "")
        self.created = parse_time(meta.get("creationTimestamp"))
        name = re.escape(self.name)
        cluster = (job.get("status") or {}).get("rayClusterName") or ""
        groups = (spec.get("rayClusterSpec") or {}).get("workerGroupSpecs") or []
        self._kinds: dict[str, list[tuple[re.Pattern[str], str]]] = {
            "RayJob": [(re.compile(name), "job")],
            "RayCluster": [(re.compile(f"{name}-{_SUFFIX}"), "Ray cluster")],
            "Job": [(re.compile(name), "submitter")],
            "Workload": [(re.compile(f"rayjob-{name}-[0-9a-f]{{5}}"), "queue")],
            "PersistentVolumeClaim": [
                (re.compile(re.escape(claim)), f"claim {claim}") for claim in _claims(spec)
            ],
            "Pod": [(re.compile(f"{name}-{_SUFFIX}"), "submitter pod")],
        }
        prefixes = [(self._prefix(cluster, ""), "head", "head pod")]
        prefixes += [
            (self._prefix(cluster, f"-{group['groupName']}"), "worker", "worker pods")
            for group in groups
        ]
        for prefix, kind, about in prefixes:
            # By an operator's option (ENABLE_DETERMINISTIC_HEAD_POD_NAME) heads have no suffix.
            suffix = f"(-{_SUFFIX})?" if kind == "head" else f"-{_SUFFIX}"
            self._kinds["Pod"].append((re.compile(f"{prefix}-{kind}{suffix}"), about))

    def _prefix(self, cluster: str, rest: str) -> str:
        if cluster:
            return re.escape(f"{cluster}{rest}"[:_LONGEST_PREFIX])
        full = f"{self.name}-{'?' * 5}{rest}"[:_LONGEST_PREFIX]
        return re.escape(full).replace(re.escape("?"), "[a-z0-9]")

    def about(self, kind: str, name: str) -> str | None:
        """What a person calls this object; None if it is not this job's."""
        for pattern, about in self._kinds.get(kind, []):
            if pattern.fullmatch(name):
                return about
        return None


def event_reasons(events: Iterable[dict[str, Any]], mine: JobObjects) -> Iterator[Reason]:
    """Warnings about a job's objects, made since it was created; one for each event.

    Args:
        events: of the namespace, as the API server gives them, in any order.
        mine: the job's objects.
    """
    for event in events:
        what = event.get("involvedObject") or event.get("regarding") or {}
        about = mine.about(what.get("kind") or "", what.get("name") or "")
        when = event_time(event)
        if about is None or event.get("type") == "Normal" or when < mine.created - _CLOCK_SLACK:
            continue
        uid = what.get("uid")
        if what.get("kind") == "RayJob" and uid and mine.uid and uid != mine.uid:
            continue
        message = event.get("message") or event.get("note") or ""
        if event.get("reason") == "Unhealthy" and message.startswith("Readiness"):
            continue  # every Ray node fails its first probes
        if reason := make_reason(about, event.get("reason") or "Warning", message, when, what):
            yield reason


def make_reason(
    about: str, reason: str, message: str, when: datetime, what: dict[str, Any]
) -> Reason | None:
    """A reason with one word for what kubelet and scheduler call by several; None says nothing."""
    message, name = " ".join(message.split()), what.get("name") or ""
    if reason == "Unschedulable":
        reason = NOT_SCHEDULED
    if reason in ("Failed", "BackOff", "ErrImagePull", "ImagePullBackOff", "InvalidImageName") and (
        "pull" in message.lower() or "InvalidImageName" in message
    ):
        reason = PULL
        if message.startswith("Error: "):
            return None  # the event beside it says which image and why
    shown = re.sub(r"\b[\w.-]+-(head|worker)-[a-z0-9]{5}\b", "POD", message)
    shown = shown.replace(name, "POD") if name and what.get("kind") == "Pod" else shown
    return Reason(about, reason, shown[:500], when, frozenset([name]))


def aggregate(reasons: Iterable[Reason]) -> list[Reason]:
    """One reason for each thing and word, with its newest message; newest first."""
    groups: dict[tuple[str, str], Reason] = {}
    for found in sorted(reasons, key=lambda reason: reason.when):
        key = (found.about, found.reason)
        earlier = groups.get(key)
        names = found.objects | (earlier.objects if earlier else frozenset())
        kept = found
        if found.reason == PULL and earlier and "Failed to pull" in earlier.message:
            kept = earlier  # the back-off that follows says less
        groups[key] = Reason(found.about, found.reason, kept.message, found.when, names)
    return sorted(groups.values(), key=lambda reason: reason.when, reverse=True)


def event_time(event: dict[str, Any]) -> datetime:
    """When an event was last seen. Old recorders set ``lastTimestamp``; new ones ``eventTime``, and
    ``series`` for repetitions."""
    series = event.get("series") or {}
    times = (
        series.get("lastObservedTime"),
        event.get("lastTimestamp"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        (event.get("metadata") or {}).get("creationTimestamp"),
    )
    return max(parse_time(time) for time in times)


def parse_time(text: str | None) -> datetime:
    """A time of the API; the beginning of all times where there is none."""
    try:
        return datetime.fromisoformat(text or "").astimezone(UTC)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _claims(spec: dict[str, Any]) -> set[str]:
    head = ((spec.get("rayClusterSpec") or {}).get("headGroupSpec") or {}).get("template") or {}
    volumes = (head.get("spec") or {}).get("volumes") or []
    found = {(v.get("persistentVolumeClaim") or {}).get("claimName") for v in volumes}
    return {claim for claim in found if claim}
