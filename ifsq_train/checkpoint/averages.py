"""Decay of averaged weights, and how much of the initial weights is left in an average."""

from __future__ import annotations

import math

NOTED_SHARE = 0.01
"""Averages with more of the initial weights than this are worth a warning."""


def average_decay(decay: float, warmup: bool, updates: int) -> float:
    """Decay of an update of the average.

    Args:
        decay: of the recipe, in [0, 1).
        warmup: whether it rises from 0.1 to `decay`: min(decay, (1 + n) / (10 + n)).
        updates: n, the updates before this one.
    """
    return min(decay, (1 + updates) / (10 + updates)) if warmup else decay


def initial_share(decay: float, warmup: bool, updates: int) -> float:
    """Share of the initial weights in an average after so many updates, in [0, 1]."""
    if decay <= 0:
        return 0.0 if updates else 1.0
    rising = 0
    logarithm = 0.0
    while warmup and rising < updates and (1 + rising) / (10 + rising) < decay:
        logarithm += math.log((1 + rising) / (10 + rising))
        rising += 1
        if logarithm < -50:
            return 0.0
    return math.exp(logarithm + (updates - rising) * math.log(decay))
