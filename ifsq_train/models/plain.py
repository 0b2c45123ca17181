"""One switch that turns every optimised path off, to find out whether one of them is at fault.

With ``IFSQ_PLAIN=1`` in the environment the losses hold whole logits, decoding re-reads its whole
cache and nothing is compiled or fused by hand. Results agree up to rounding; only speed and memory
differ.
"""

from __future__ import annotations

import os

VARIABLE = "IFSQ_PLAIN"


def plain_paths() -> bool:
    """Whether the optimised paths are off."""
    return os.environ.get(VARIABLE, "0") not in ("", "0")
