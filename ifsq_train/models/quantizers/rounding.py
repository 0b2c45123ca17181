"""The simple bound, rounding and straight-through gradient in the fewest passes over memory.

The same numbers, bit for bit, as the formula in `FSQ.scaled` followed by rounding: ``2 s - 1``
times ``h`` and ``s - 1/2`` times ``2 h`` round alike, because they differ by powers of two only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A plain number where all channels are alike, else one per channel, float32 [1, C, 1, 1].
PerChannel = float | Tensor


class BoundAndRound(torch.autograd.Function):
    """Codes and rounded levels of latents; the gradient is that of the bound.

    ``apply(latents, alpha, spread, half, limit)``:
        latents: float32 [B, C, H, W].
        alpha: slope of the bound ``2 sigmoid(alpha z) - 1``.
        spread: width of the bounded range in cells, L - 1 or L.
        half: L // 2; codes are rounded levels over it.
        limit: rounded levels are clamped to +-half, where the bound can reach beyond.

    Returns:
        Codes in [-1, 1] and levels as whole numbers -half..half, both float32 [B, C, H, W].
    """

    @staticmethod
    def forward(
        ctx: Any, latents: Tensor, alpha: float, spread: PerChannel, half: PerChannel, limit: bool
    ) -> tuple[Tensor, Tensor]:
        sigmoid = (latents * alpha).sigmoid_()
        rounded = (sigmoid - 0.5).mul_(spread).round_()
        if limit:
            rounded.clamp_(-half, half)  # pyright: ignore[reportCallIssue, reportArgumentType]
        ctx.save_for_backward(sigmoid)
        ctx.slope = alpha * spread / half
        ctx.mark_non_differentiable(rounded)
        return rounded / half, rounded

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (sigmoid,) = ctx.saved_tensors
        through = torch.ops.aten.sigmoid_backward(gradients[0], sigmoid)
        return through.mul_(ctx.slope), None, None, None, None
