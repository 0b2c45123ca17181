"""Which complete checkpoints of a run are kept."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data_pipelines.documents import read_object
from data_pipelines.storage.local import write_atomically
from ifsq_train.checkpoint.format import MARKER, STEP_FOLDER, list_steps, step_folder
from ifsq_train.checkpoint.intact import IntactCheckpoints
from ifsq_train.config import CheckpointConfig

SCORES = "scores.json"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retention:
    """The newest, every so many steps, and the best by a logged value.

    Attributes:
        keep_last: newest checkpoints kept.
        keep_every_steps: multiples of it are never deleted.
        metric, lowest, keep_best: the `keep_best` checkpoints with the lowest (else highest)
            value of `metric` are kept.
    """

    keep_last: int
    keep_every_steps: int | None = None
    metric: str | None = None
    lowest: bool = True
    keep_best: int = 0

    @classmethod
    def of(cls, config: CheckpointConfig) -> Retention:
        """The recipe's choice."""
        best = config.keep_best
        if best is None:
            return cls(config.keep_last, config.keep_every_steps)
        return cls(
            config.keep_last, config.keep_every_steps, best.metric, best.mode == "min", best.count
        )

    def apply(
        self, folder: Path, step: int, metrics: Mapping[str, float], intact: IntactCheckpoints
    ) -> None:
        """Note the new checkpoint's value, then delete what nothing keeps.

        Only checkpoints that are intact count: a damaged one keeps no good one from staying. It is
        deleted itself once `keep_last` intact ones are newer.

        Args:
            folder: of the checkpoints.
            step: the checkpoint just published.
            metrics: latest logged values.
            intact: knows which are.
        """
        steps = list_steps(folder)
        good = intact.among(folder, steps)
        kept = self.kept(good, self._note(folder, steps, step, metrics))
        newest = good[-self.keep_last :]
        for old in steps:
            damaged = old not in good
            superseded = len(newest) == self.keep_last and old < newest[0]
            if old not in kept and (superseded if damaged else True):
                target = step_folder(folder, old)
                # Marker first: a kill in between leaves a folder no reader looks at.
                (target / MARKER).unlink(missing_ok=True)
                shutil.rmtree(target, ignore_errors=True)
        _delete_leftovers(folder, step)

    def kept(self, steps: list[int], scores: Mapping[int, float]) -> set[int]:
        """Those of `steps` (ascending) that stay."""
        kept = set(steps[-self.keep_last :])
        if self.keep_every_steps is not None:
            kept |= {step for step in steps if step % self.keep_every_steps == 0}
        known = [step for step in steps if step in scores]
        known.sort(key=lambda step: scores[step], reverse=not self.lowest)
        return kept | set(known[: self.keep_best])

    def _note(
        self, folder: Path, steps: list[int], step: int, metrics: Mapping[str, float]
    ) -> dict[int, float]:
        """Values by step, kept beside the checkpoints so that a resumed run knows them."""
        if self.metric is None:
            return {}
        path = folder / SCORES
        scores = _read_scores(path)
        value = metrics.get(self.metric)
        if value is not None and math.isfinite(value):
            scores[step] = value
        scores = {key: value for key, value in scores.items() if key in steps}
        write_atomically(path, json.dumps(scores, sort_keys=True).encode())
        return scores


def _delete_leftovers(folder: Path, step: int) -> None:
    """Folders of saves that were never finished, older than the checkpoint of `step`."""
    for path in folder.iterdir():
        match = STEP_FOLDER.fullmatch(path.name)
        if match and int(match[1]) < step and not (path / MARKER).exists():
            shutil.rmtree(path, ignore_errors=True)


def _read_scores(path: Path) -> dict[int, float]:
    if not path.exists():
        return {}
    try:
        return {int(key): float(value) for key, value in read_object(path).items()}
    except (ValueError, TypeError, OverflowError):
        # Only costs the memory of which old checkpoint was best.
        logger.warning("%s is damaged; starting a new one", path)
        return {}
