"""Agreement of a generator's hidden states with a teacher's features (REPA, Yu et al. 2024)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

_CACHED_ROWS, _EPS = 1024, 1e-8

Way = Literal["plain", "fused", "compiled"]
Visit = Callable[[Tensor, Tensor, float, bool], tuple[Tensor, Tensor | None]]


def alignment_loss(
    projections: Sequence[Tensor],
    targets: Sequence[Tensor],
    *,
    way: Way = "fused",
    weight: float = 1.0,
) -> Tensor:
    """Minus the mean cosine over teachers, samples and positions (released llamagen/train.py).

    Position i of an autoregressive model pairs with patch i: it has seen the class and the
    tokens before i, so what is aligned is a prediction of that patch.

    Args:
        projections: per teacher, projector outputs float [B, T, Z].
        targets: per teacher, its patch features [B, T, Z]; no gradient goes into them.
        way: ``plain`` composes torch's operations. ``fused`` makes value and gradient in one visit,
            ``compiled`` in one kernel of torch.compile; both can be differentiated once.
        weight: factor that the caller multiplies the result by. The returned value does not
            depend on it; the gradient is prepared for it, and another factor costs one more pass.

    Returns:
        fp32 scalar in [-1, 1].

    Raises:
        ValueError: no teacher, or shapes that differ.
    """
    shapes = [tuple(part.shape) for part in projections], [tuple(part.shape) for part in targets]
    if not projections or shapes[0] != shapes[1]:
        raise ValueError(f"projections {shapes[0]} do not pair with teacher features {shapes[1]}")
    pairs = zip(projections, targets, strict=True)
    if way == "plain":
        cosines: list[Any] = [
            F.cosine_similarity(mine.float(), theirs.detach().float(), dim=-1, eps=_EPS).mean()
            for mine, theirs in pairs
        ]
    else:
        expected = -weight / len(projections)
        visit = _compiled() if way == "compiled" else _visit_in_parts
        cosines = [
            _MeanCosine.apply(mine, theirs.detach(), expected, visit) for mine, theirs in pairs
        ]
    return -torch.stack(cosines).mean()


class _MeanCosine(torch.autograd.Function):
    """Value and gradient together, while the features are at hand.

    The gradient of the cosine c of x and y by x is ``(y - x (x y) / |x|^2) / (|x| |y|)``. It is
    made for an `expected` gradient of the result, and costs one more pass where another one comes.
    """

    @staticmethod
    def forward(ctx: Any, mine: Tensor, theirs: Tensor, expected: float, visit: Visit) -> Tensor:
        x, y = mine.reshape(-1, mine.shape[-1]), theirs.reshape(-1, mine.shape[-1])
        count = max(1, len(x))
        cosines, gradient = visit(x, y, expected / count, ctx.needs_input_grad[0])
        ctx.gradient, ctx.expected, ctx.shape = gradient, expected, mine.shape
        return cosines.sum() / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None]:
        (given,) = grad_outputs
        gradient, ctx.gradient = ctx.gradient, None
        assert gradient is not None, "the loss can be differentiated once"
        # Only a CPU can look at the number without waiting for it.
        if given.device.type != "cpu" or float(given) != ctx.expected:
            gradient.mul_(given / ctx.expected)
        return gradient.view(ctx.shape), None, None, None


def _visit(x: Tensor, y: Tensor, share: float, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """Cosines fp32 [N, 1] of rows [N, Z] and, if wanted, `share` times their derivative by x."""
    wide, other = x.float(), y.float()
    length = wide.square().sum(-1, keepdim=True).sqrt().clamp_min(_EPS)
    product = (wide * other).sum(-1, keepdim=True)
    lengths = length * other.square().sum(-1, keepdim=True).sqrt().clamp_min(_EPS)
    if not wanted:
        return product / lengths, None
    gradient = (other - wide * (product / length.square())) * (share / lengths)
    return product / lengths, gradient.to(x.dtype)


@cache
def _compiled() -> Visit:
    """`_visit` as one kernel, made at the first call of a shape."""
    return torch.compile(_visit)


def _visit_in_parts(
    x: Tensor, y: Tensor, share: float, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """`_visit` with torch's own kernels, some rows at a time."""
    gradient = torch.empty_like(x) if wanted else None
    # On a CPU a few rows, which stay in its cache; on a GPU all of them.
    rows = _CACHED_ROWS if x.device.type == "cpu" else max(1, len(x))
    room = x.new_empty((min(rows, len(x)), x.shape[-1]), dtype=torch.float32)
    cosines = []
    for first in range(0, max(1, len(x)), rows):
        part = slice(first, first + rows)
        out = None if gradient is None else gradient[part]
        cosines.append(_visit_part(x[part].float(), y[part].float(), share, out, room))
    return torch.cat(cosines), gradient


def _visit_part(
    x: Tensor, y: Tensor, share: float, gradient: Tensor | None, room: Tensor
) -> Tensor:
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
