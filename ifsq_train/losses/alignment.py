"""Agreement of a generator's hidden states with a teacher's features (REPA, Yu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED_ROWS, _EPS = 1024, 1e-8


def alignment_loss(
    projections: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    fused: bool = True,
    weight: float = 1.0,
) -> Tensor:
    """Minus the mean cosine over teachers, samples and positions (released llamagen/train.py).

    Position i of an autoregressive model pairs with patch i: it has seen the class and the
    tokens before i, so what is aligned is a prediction of that patch.

    Args:
        projections: per teacher, projector outputs float [B, T, Z].
        targets: per teacher, its patch features [B, T, Z]; no gradient goes into them.
        fused: value and gradient in one pass; the result can be differentiated once.
        weight: what the result will be multiplied by. It changes no number; the gradient is
            ready for it, where another factor would cost a pass over it.

    Returns:
        fp32 scalar in [-1, 1].

    Raises:
        ValueError: no teacher, or shapes that differ.
    """
    shapes = [tuple(part.shape) for part in projections], [tuple(part.shape) for part in targets]
    if not projections or shapes[0] != shapes[1]:
        raise ValueError(f"projections {shapes[0]} do not pair with teacher features {shapes[1]}")
    pairs = zip(projections, targets, strict=True)
    if fused:
        expected = -weight / len(projections)
        cosines: list[Any] = [
            _MeanCosine.apply(mine, theirs.detach(), expected) for mine, theirs in pairs
        ]
    else:
        cosines = [
            F.cosine_similarity(mine.float(), theirs.detach().float(), dim=-1, eps=_EPS).mean()
            for mine, theirs in pairs
        ]
    return -torch.stack(cosines).mean()


class _MeanCosine(torch.autograd.Function):
    """Value and gradient in one visit, some rows at a time: each number comes from memory once.

    The gradient of the cosine c of x and y by x is ``(y - x (x y) / |x|^2) / (|x| |y|)``. It is
    made for an `expected` gradient of the result, and costs one more pass where another one comes.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, theirs: Tensor, expected: float) -> Tensor:
        x, y = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, mine.shape[-1])
        gradient = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        # On a CPU a few rows, which stay in its cache; on a GPU all of them.
        rows = _CACHED_ROWS if x.device.type == "cpu" else max(1, len(x))
        share = expected / max(1, len(x))
        room = x.new_empty((min(rows, len(x)), x.shape[-1]), dtype=torch.float32)
        sums = []
        for first in range(0, len(x), rows):
            part = slice(first, first + rows)
            out = None if gradient is None else gradient[part]
            sums.append(_cosines(x[part].float(), y[part].float(), share, out, room).sum())
        ctx.gradient, ctx.expected, ctx.shape = gradient, expected, mine.shape
        return torch.stack(sums).sum() / len(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None]:
        (given,) = grad_outputs
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the loss can be differentiated once"
        # Only a CPU can look at the number without waiting for it.
        if given.device.type != "cpu" or float(given) != ctx.expected:
            gradient.mul_(given / ctx.expected)
        return gradient.view(ctx.shape), None, None


def _cosines(x: Tensor, y: Tensor, share: float, gradient: Tensor | None, room: Tensor) -> Tensor:
    """Cosines [N, 1] of rows fp32 [N, Z]; `share` times their derivative by x into `gradient`.

    `room`, fp32 and as large, is overwritten: it stays in the cache from part to part.
    """
    room = room[: len(x)]
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(_EPS)
    other = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(_EPS)
    product = torch.mul(x, y, out=room).sum(-1, keepdim=True)
    lengths = length * other
    if gradient is not None:
        torch.addcmul(y, x, product / length.square_(), value=-1.0, out=room)
        torch.mul(room, share / lengths, out=gradient)
    return product.div_(lengths)
