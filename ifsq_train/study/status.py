"""How far a study is, from its store alone."""

from __future__ import annotations

import json
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
        done, running, failed, waiting: how many.
        seconds: mean of those done; None before there is one.
    """

    done: int
    running: int
    failed: int
    waiting: int
    seconds: float | None


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
    for name, stages in names.items():
        seconds, running, failed = [], 0, 0
        for stage in stages:
            record = store.record(stage)
            if record is not None:
                seconds.append(float(record["seconds"]))
            elif (store.folder(stage) / RUNNING).is_file():
                running += 1
            elif (error := store.failure(stage)) is not None:
                failures[stage.folder] = error
                failed += 1
        waiting = len(stages) - len(seconds) - running - failed
        each = mean(seconds) if seconds else None
        by_name[name] = KindStatus(len(seconds), running, failed, waiting, each)
    return StudyStatus(by_name, failures, _eta(by_name))


def _eta(by_name: Mapping[str, KindStatus]) -> float | None:
    left = 0.0
    for status in by_name.values():
        open_stages = status.waiting + status.running
        if open_stages and status.seconds is None:
            return None
        left += open_stages * (status.seconds or 0.0)
    return left / max(1, sum(status.running for status in by_name.values()))


def running_note() -> bytes:
    """What a stage leaves in its folder while it runs."""
    return json.dumps({"since": time.time()}).encode()
