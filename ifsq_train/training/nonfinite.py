"""NaN and infinite gradients: seen at once where that costs nothing, else before they are saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.strategy.base import StepStats

Policy = Literal["stop", "skip", "rollback"]
MAX_IN_A_ROW = 20
"""Updates left out in a row before the run is ended: it no longer learns."""

logger = logging.getLogger(__name__)


class NonFiniteGuard:
    """Watches the gradient norms of a run.

    A norm that is already on the host is looked at immediately. One on a device is only kept, and
    `check` looks at all kept ones: the loop calls it before it logs and before it saves, so that
    weights spoiled by a NaN are never written.

    Args:
        policy: what to do; see ``TrainConfig.on_nonfinite``.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._kept: list[tuple[int, str, Tensor]] = []
        self._in_a_row = 0
        self.skipped = 0

    def note(self, step: int, stats: Mapping[str, StepStats]) -> bool:
        """After the updates of a step; returns whether to roll back.

        Raises:
            UserError: the policy is to stop, or nothing but such updates has come for long.
        """
        bad = None
        for name, stat in stats.items():
            if isinstance(stat.grad_norm, Tensor):
                self._kept.append((step, name, stat.grad_norm.detach()))
            elif not stat.applied:
                bad = name
        if bad is not None:
            return self._act(step, bad)
        if not self._kept:  # of kept norms nothing is known yet
            self._in_a_row = 0
        return False

    def check(self) -> bool:
        """Look at the kept norms; returns whether to roll back.

        Raises:
            UserError: as `note`.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return False
        finite = torch.stack([norm for _, _, norm in kept]).isfinite().tolist()
        for (step, name, _), good in zip(kept, finite, strict=True):
            if not good:
                return self._act(step, name)
        self._in_a_row = 0
        return False

    def _act(self, step: int, name: str) -> bool:
        self._kept = []
        self._in_a_row += 1
        if self._policy == "stop" or self._in_a_row > MAX_IN_A_ROW:
            again = f" for the {self._in_a_row}th time in a row" if self._in_a_row > 1 else ""
            raise UserError(
                f"step {step}: a gradient of '{name}' is NaN or infinite{again}; saved checkpoints"
                " are clean. Lower the learning rate or look at the data, or set on_nonfinite to"
                " skip or rollback"
            )
        self.skipped += 1
        consequence = {
            "skip": "update left out",
            "rollback": "taking the last checkpoint's weights",
        }
        logger.warning(
            "step %d: a gradient of '%s' is NaN or infinite: %s",
            step,
            name,
            consequence[self._policy],
        )
        return self._policy == "rollback"


def as_number(value: float | Tensor) -> float:
    """The norm on the host; waits for the device if it is there."""
    return float(value) if isinstance(value, Tensor) else value
