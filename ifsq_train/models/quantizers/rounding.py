"""The simple bound, rounding and straight-through gradient in few passes over memory.

The same numbers, bit for bit, as the formula in `FSQ.scaled` followed by rounding: ``2 s - 1``
times ``h`` and ``s - 1/2`` times ``2 h`` round alike, because they differ by powers of two only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Rounded(NamedTuple):
    """Latents after bound and rounding; all but `slope` float32 [B, C, H, W].

    Attributes:
        codes: in [-1, 1].
        levels: whole numbers -half..half.
        sigmoid: of the latents, for the derivative.
        slope: the codes' derivative by the latents is this times ``sigmoid (1 - sigmoid)``.
    """

    codes: Tensor
    levels: Tensor
    sigmoid: Tensor
    slope: Tensor


class Scale(NamedTuple):
    """Numbers of the simple bound, float32.

    Where all channels are alike they are scalars that stay on the CPU, whatever device the latents
    are on: an operation takes them faster than it takes Python's numbers. Else [1, C, 1, 1].

    Attributes:
        alpha: slope of the bound ``2 sigmoid(alpha z) - 1``, always a scalar.
        spread: width of the bounded range in cells, L - 1 or L.
        half: L // 2; codes are rounded levels over it.
        slope: ``alpha spread / half``.
        limit: what rounded levels are clamped to, where the bound can reach beyond.
        centred: ``-spread / 2``, and the spread, where that is one power of two for all channels.
    """

    alpha: Tensor
    spread: Tensor
    half: Tensor
    slope: Tensor
    limit: tuple[Tensor | float, Tensor | float] | None
    centred: tuple[Tensor, float] | None


def scale_of(levels: Tensor | int, alpha: float, *, equal_width: bool) -> Scale:
    """Scale of levels int64 [1, C, 1, 1], or of one number where all channels are alike."""
    counts = torch.tensor(levels, device="cpu") if isinstance(levels, int) else levels
    spread = (counts if equal_width else counts - 1).to(torch.float32)
    half = (counts // 2).to(torch.float32)
    limit = centred = None
    if equal_width:
        limit = (-half, half) if counts.dim() else (-float(half), float(half))
    if not counts.dim() and math.frexp(float(spread))[0] == 0.5:
        centred = (-spread / 2.0, float(spread))
    return Scale(
        torch.tensor(alpha, device="cpu"), spread, half, alpha * spread / half, limit, centred
    )


def bound_and_round(latents: Tensor, scale: Scale) -> Rounded:
    """Bound and round float32 [B, C, H, W] without a graph; `StraightThrough` has the gradient."""
    sigmoid = (latents * scale.alpha).sigmoid_()
    if scale.centred is not None:
        # A product with a power of two is exact: taken before the difference or after, the same.
        centre, spread = scale.centred
        levels = torch.add(centre, sigmoid, alpha=spread).round_()
    else:
        levels = (sigmoid - 0.5).mul_(scale.spread).round_()
    if scale.limit is not None:
        levels.clamp_(*scale.limit)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return Rounded(levels / scale.half, levels, sigmoid, scale.slope)


class StraightThrough(torch.autograd.Function):
    """Codes with the gradient of the bound, and indices, from one call without a graph.

    One node in place of three products and a sigmoid: for the few thousand values of a batch of
    latents the number of calls decides, for many the number of passes over memory.
    """

    @staticmethod
    def forward(
        ctx: Any, latents: Tensor, quantize: Callable[[Tensor], tuple[Rounded, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        rounded, indices = quantize(latents)
        ctx.save_for_backward(rounded.sigmoid)
        ctx.slope = rounded.slope
        ctx.set_materialize_grads(False)
        return rounded.codes, indices

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, None]:
        gradient = grad_outputs[0]
        if gradient is None:
            return None, None
        (sigmoid,) = ctx.saved_tensors
        return torch.ops.aten.sigmoid_backward(gradient, sigmoid).mul_(ctx.slope), None


def mixed_radix(digits: Sequence[Tensor], levels: Sequence[int]) -> Tensor:
    """Sum of digits times the product of the levels before them; digit 0 is least significant.

    By Horner's rule, with plain numbers as weights: nothing waits for a device, and no matrix
    product, which might be in TF32, is taken.
    """
    total = digits[-1]
    for digit, level in zip(reversed(digits[:-1]), reversed(levels[:-1]), strict=True):
        total = torch.add(digit, total, alpha=level)
    return total
