"""How LFQ's entropy term is weighted over a run (released lfq loss class)."""

from __future__ import annotations


def lfq_entropy_factor(step: int, *, extra: float = 3.0, anneal_steps: int = 2000) -> float:
    """Factor on LFQ's entropy loss: 1 + `extra` at step 0, falling linearly to 1."""
    return 1.0 + extra * max(0.0, 1.0 - step / anneal_steps)
