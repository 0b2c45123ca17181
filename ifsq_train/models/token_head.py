"""The output layer over a codebook, with its cross-entropy in one go.

With 17**4 tokens the logits of 256 images of 256 positions are 22 GB in fp32. Here the loss takes
them a part at a time, and while a part is there its gradients with respect to input and weight are
taken too, so that nothing is kept of it and nothing computed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.plain import cpu_formulas, plain_paths

MAX_LOGIT_BYTES = 2**28
"""Held at once on a CPU."""
_GPU_SHARE = 64
"""On a GPU: one part of so many of its memory, at least MAX_LOGIT_BYTES."""
_SUMMED_ROWS = 8
_CACHED_BYTES = 2**20
"""Visited at once on a CPU, fp32: what its cache keeps, and enough for small codebooks."""
Visit = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""Logits [N, V] and targets [N] to their share in a mean over a count, and its gradient."""


class TokenHead(nn.Linear):
    """Linear layer without bias whose forward can also give the mean cross-entropy.

    Attributes:
        compiled: softmax and gradient of a part by torch.compile: two kernels instead of ten, each
            of which would visit all logits in fp32. Equal up to rounding.
    """

    compiled: bool = False

    def __init__(self, dim: int, codebook_size: int) -> None:
        super().__init__(dim, codebook_size, bias=False)

    def forward(self, input: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits, or the loss where targets are given.

        Args:
            input: float [..., D].
            targets: int64 [...], tokens.

        Returns:
            [..., V], or the mean cross-entropy in nats, fp32 scalar.
        """
        if targets is None:
            return F.linear(input, self.weight)
        visit = _compiled() if self.compiled and not plain_paths() else _loss_and_gradient
        rows = input.flatten(0, -2)
        loss = _MeanCrossEntropy.apply(rows, self.weight, targets.flatten(), visit)
        assert isinstance(loss, Tensor)
        return loss


class _MeanCrossEntropy(torch.autograd.Function):
    """Gradients are taken in the forward pass, for a loss of weight 1, and scaled backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, visit: Visit) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            x_grad = torch.empty_like(x) if wants_x else None
            w_grad = torch.empty_like(weight, dtype=torch.float32) if wants_weight else None
            losses = []
            rows = max(1, logit_bytes(x.device) // (len(weight) * w.element_size()))
            for first in range(0, len(x), rows):
                at = slice(first, first + rows)
                h = x[at].to(dtype)
                loss, gradient = visit(h @ w.t(), targets[at], len(x))
                losses.append(loss)
                if x_grad is not None:
                    x_grad[at] = gradient @ w
                if w_grad is not None:
                    _add_outer(w_grad, gradient, h, begin=first == 0)
        ctx.gradients = (x_grad, w_grad)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the loss can be differentiated once"
        x_grad, w_grad = gradients
        return (
            None if x_grad is None else x_grad.mul_(scale.to(x_grad.dtype)),
            None if w_grad is None else w_grad.mul_(scale),
            None,
            None,
        )


def logit_bytes(device: torch.device) -> int:
    """Bytes of logits that are held at once: more where there is more memory, for fewer calls."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return MAX_LOGIT_BYTES
    return max(MAX_LOGIT_BYTES, torch.cuda.get_device_properties(device).total_memory // _GPU_SHARE)


def _visit(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`_loss_and_gradient` in terms a compiler makes two kernels of: a sum and what follows it."""
    wide = logits.float()
    total = wide.logsumexp(-1, keepdim=True)
    own = wide.gather(-1, targets.unsqueeze(-1))
    chosen = torch.arange(logits.shape[-1], device=logits.device) == targets.unsqueeze(-1)
    gradient = ((wide - total).exp() - chosen.float()) / count
    return (total - own).sum() / count, gradient.to(logits.dtype)


@cache
def _compiled() -> Visit:
    """`_visit` compiled, once for all networks."""
    return torch.compile(_visit, dynamic=False)


def _loss_and_gradient(logits: Tensor, targets: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Share of rows [N, V] in the mean over `count`; the logits turn into its gradient by them.

    The softmax is fp32 whatever the logits are, on a CPU a few rows at a time, which stay in its
    cache meanwhile.
    """
    step = summed = len(logits)
    if cpu_formulas(logits.device):
        summed = _SUMMED_ROWS  # whatever is visited at once: the loss's rounding hangs on it
        step = max(_CACHED_BYTES // (4 * logits.shape[-1] * summed), 1) * summed
    losses: list[Tensor] = []
    for rows, chosen in zip(logits.split(step), targets.split(step), strict=True):
        wide = rows.float()  # the rows themselves where they are fp32
        chosen = chosen.unsqueeze(-1)
        wide.sub_(wide.amax(-1, keepdim=True))
        own = wide.gather(-1, chosen)
        total = wide.exp_().sum(-1, keepdim=True)
        losses += [share.sum() for share in (total.log() - own).split(summed)]
        wide.mul_((total * count).reciprocal_())
        wide.scatter_add_(-1, chosen, torch.full_like(own, -1.0 / count))
        if wide.dtype != rows.dtype:
            rows.copy_(wide)
    return torch.stack(losses).sum() / count, logits


def _add_outer(total: Tensor, left: Tensor, right: Tensor, *, begin: bool) -> None:
    """total fp32 [V, D] becomes, or grows by, left^T right of [N, V] and [N, D]."""
    if left.dtype != total.dtype:
        product = left.t() @ right
        _ = total.copy_(product) if begin else total.add_(product)
    else:
        total.addmm_(left.t(), right, beta=0 if begin else 1)
