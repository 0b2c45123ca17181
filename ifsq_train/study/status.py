"""How far a study is, from its store alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import mean

from ifsq_train.study.expand import Expansion
from ifsq_train.study.stage import Stage
from ifsq_train.study.store import Store

RUNNING = "running.json"


@dataclass(frozen=True)
class KindStatus:
    """Stages of one name.

    Attributes:
        done, running, failed, waiting: how many; a stage whose driver was killed waits.
        seconds: mean of those done; None before there is one.
        elapsed: seconds that those running have taken so far.
    """

    done: int
    running: int
    failed: int
    waiting: int
    seconds: float | None
    elapsed: tuple[float, ...] = ()


@dataclass(frozen=True)
class StudyStatus:
    """Progress of a study.

    Attributes:
        by_name: in the order of the study's stages.
        failures: error by stage folder.
        eta_seconds: work left by the means of stages of the same name, over those that run at once;
            None where a stage that is left has no finished fellow.
    """

    by_name: dict[str, KindStatus]
    failures: dict[str, str] = field(default_factory=dict)
    eta_seconds: float | None = None


def read_status(expansion: Expansion, store: Store) -> StudyStatus:
    """What the store says.

    Raises:
        DataError: a damaged record.
    """
    names: dict[str, list[Stage]] = {name: [] for name in expansion.config.stages}
    for stage in expansion.stages.values():
        names.setdefault(stage.name, []).append(stage)
    failures = {}
    by_name = {}
    driven, now = store.is_driven(), time.time()
    for name, stages in names.items():
        seconds, elapsed, failed = [], [], 0
        for stage in stages:
            record = store.record(stage)
            if record is not None:
                seconds.append(float(record["seconds"]))
            elif (since := _running_since(stage, store, driven=driven)) is not None:
                elapsed.append(max(0.0, now - since))
            elif (error := store.failure(stage)) is not None:
                failures[stage.folder] = error
                failed += 1
        waiting = len(stages) - len(seconds) - len(elapsed) - failed
        each = mean(seconds) if seconds else None
        counts = (len(seconds), len(elapsed), failed, waiting)
        by_name[name] = KindStatus(*counts, each, tuple(elapsed))
    return StudyStatus(by_name, failures, _eta(by_name))


def _eta(by_name: Mapping[str, KindStatus]) -> float | None:
    left = 0.0
    for status in by_name.values():
        if (status.waiting or status.running) and status.seconds is None:
            return None
        each = status.seconds or 0.0
        left += status.waiting * each + sum(max(0.0, each - spent) for spent in status.elapsed)
    return left / max(1, sum(status.running for status in by_name.values()))


def _running_since(stage: Stage, store: Store, *, driven: bool) -> float | None:
    """When a stage began that is running now; None where it is not.

    A note of this machine is believed only while a driver holds the store: a killed one leaves
    its notes behind. Of another machine of a cluster nothing but the note can be known.
    """
    try:
        note = json.loads((store.folder(stage) / RUNNING).read_text())
        since, here = float(note["since"]), note.get("host") == socket.gethostname()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return since if driven or not here else None


def running_note() -> bytes:
    """What a stage leaves in its folder while it runs."""
    return json.dumps({"since": time.time(), "host": socket.gethostname()}).encode()
