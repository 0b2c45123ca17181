"""The simple bound, rounding and straight-through gradient in few passes over memory.

The same numbers, bit for bit, as the formula in `FSQ.scaled` followed by rounding: ``2 s - 1``
times ``h`` and ``s - 1/2`` times ``2 h`` round alike, because they differ by powers of two only.
"""

from __future__ import annotations

import torch
from torch import Tensor

# A plain number where all channels are alike, else one per channel, float32 [1, C, 1, 1].
PerChannel = float | Tensor


def bound_and_round(
    latents: Tensor, alpha: float, spread: PerChannel, half: PerChannel, *, limit: bool
) -> tuple[Tensor, Tensor]:
    """Codes and rounded levels of latents; the gradient of the codes is that of the bound.

    Args:
        latents: float32 [B, C, H, W].
        alpha: slope of the bound ``2 sigmoid(alpha z) - 1``.
        spread: width of the bounded range in cells, L - 1 or L.
        half: L // 2; codes are rounded levels over it.
        limit: clamp rounded levels to +-half, where the bound can reach beyond.

    Returns:
        Codes in [-1, 1] and levels as whole numbers -half..half, both float32 [B, C, H, W].
    """
    sigmoid = torch.sigmoid(latents * alpha)
    # Up to a constant the bound over `half`, so with its derivative. A product with a constant
    # remembers no values, so they can be overwritten: straight through without another pass.
    codes = sigmoid * (spread / half)
    with torch.no_grad():
        rounded = (sigmoid - 0.5).mul_(spread).round_()
        if limit:
            rounded.clamp_(-half, half)  # pyright: ignore[reportCallIssue, reportArgumentType]
        torch.div(rounded, half, out=codes)
    return codes, rounded
