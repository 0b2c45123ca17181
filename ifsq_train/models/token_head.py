"""The output layer over a codebook, with its cross-entropy in one go.

With 17**4 tokens the logits of 256 images of 256 positions are 22 GB in fp32. Here the loss takes
them a part at a time, and while a part is there its gradients with respect to input and weight are
taken too, so that nothing is kept of it and nothing computed twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_LOGITS = 2**26
"""Logits held at once: a quarter of a gigabyte in fp32."""


class TokenHead(nn.Linear):
    """Linear layer without bias whose forward can also give the mean cross-entropy."""

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
        loss = _MeanCrossEntropy.apply(input.flatten(0, -2), self.weight, targets.flatten())
        assert isinstance(loss, Tensor)
        return loss


class _MeanCrossEntropy(torch.autograd.Function):
    """Gradients are taken in the forward pass, for a loss of weight 1, and scaled backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        wants_x, wants_weight = ctx.needs_input_grad[:2]
        with torch.autocast(device, enabled=False):
            w = weight.to(dtype)
            x_grad = torch.empty_like(x) if wants_x else None
            w_grad = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            losses = []
            rows = max(1, MAX_LOGITS // len(weight))
            for first in range(0, len(x), rows):
                at = slice(first, first + rows)
                h = x[at].to(dtype)
                loss, gradient = _part(h, w, targets[at], len(x), wants_x or wants_weight)
                losses.append(loss)
                if x_grad is not None:
                    x_grad[at] = gradient.to(dtype) @ w
                if w_grad is not None:
                    _add_outer(w_grad, gradient.to(dtype), h)
        ctx.gradients = (x_grad, w_grad)
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (scale,) = grad_outputs
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "the loss can be differentiated once"
        x_grad, w_grad = gradients
        return (
            None if x_grad is None else x_grad.mul_(scale.to(x_grad.dtype)),
            None if w_grad is None else w_grad.mul_(scale),
            None,
        )


def _part(
    h: Tensor, w: Tensor, targets: Tensor, count: int, differentiate: bool
) -> tuple[Tensor, Tensor]:
    """Share in the mean over `count` of some rows, and its gradient by their logits, fp32."""
    logits = (h @ w.t()).float()
    normalizer = logits.logsumexp(-1, keepdim=True)
    chosen = logits.gather(-1, targets.unsqueeze(-1))
    loss = (normalizer - chosen).sum() / count
    if not differentiate:
        return loss, logits
    gradient = logits.sub_(normalizer).exp_()
    ones = torch.full_like(chosen, -1.0)
    return loss, gradient.scatter_add_(-1, targets.unsqueeze(-1), ones).div_(count)


def _add_outer(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left^T right, fp32 [V, D] of [N, V] and [N, D]."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total.add_(left.t() @ right)
