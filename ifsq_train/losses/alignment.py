"""Agreement of a generator's hidden states with a teacher's features (REPA, Yu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS, _EPS = 512, 1e-8


def alignment_loss(
    projections: Sequence[Tensor], targets: Sequence[Tensor], *, fused: bool = True
) -> Tensor:
    """Minus the mean cosine over teachers, samples and positions (released llamagen/train.py).

    Position i of an autoregressive model pairs with patch i: it has seen the class and the
    tokens before i, so what is aligned is a prediction of that patch.

    Args:
        projections: per teacher, projector outputs float [B, T, Z].
        targets: per teacher, its patch features [B, T, Z]; no gradient goes into them.
        fused: take value and gradient in one pass; the result can be differentiated once.

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
        cosines: list[Any] = [_MeanCosine.apply(mine, theirs.detach()) for mine, theirs in pairs]
    else:
        cosines = [
            F.cosine_similarity(mine.float(), theirs.detach().float(), dim=-1, eps=_EPS).mean()
            for mine, theirs in pairs
        ]
    return -torch.stack(cosines).mean()


class _MeanCosine(torch.autograd.Function):
    """Some rows at a time, value and gradient together: each number is fetched from memory once.

    The gradient of the cosine c of x and y by x is ``y / (|x| |y|) - c x / |x|^2``.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, theirs: Tensor) -> Tensor:
        flat, other = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, mine.shape[-1])
        gradient = torch.empty_like(flat) if ctx.needs_input_grad[0] else None
        sums = []
        for first in range(0, len(flat), _ROWS):
            rows = slice(first, first + _ROWS)
            x, y = flat[rows].float(), other[rows].float()
            products = x * y
            length = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min_(_EPS)
            other_length = torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min_(_EPS)
            inverse = (length * other_length).reciprocal_()
            cosine = products.sum(-1, keepdim=True) * inverse
            sums.append(cosine.sum())
            if gradient is not None:
                torch.mul(x, -cosine / length.square_(), out=products)
                gradient[rows] = products.addcmul_(y, inverse)
        ctx.gradient, ctx.count, ctx.shape = gradient, len(flat), mine.shape
        return torch.stack(sums).sum() / len(flat)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None]:
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the loss can be differentiated once"
        return gradient.mul_(grad_outputs[0] / ctx.count).view(ctx.shape), None
