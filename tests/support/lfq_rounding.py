"""How far fp32 may take the gradient of LFQ's losses from that in float64, and no further."""

from __future__ import annotations

import torch
from torch import Tensor

from ifsq_train.models.quantizers.lfq import all_codes

ROUNDINGS = 4
"""Operations in a row on each of those values: product, exponential, sum, quotient."""


def exact_gradient(x: Tensor, w: Tensor, temperature: float = 0.01) -> Tensor:
    """Of entropy + 0.25 commitment + <codes, w>, with the softmax over all codes as published.

    Float64, shape of `x` [B, C, H, W].
    """
    x = x.detach().double().requires_grad_()
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    logits = 2 * rows @ all_codes(x.shape[1]).double().t() / temperature
    shares = logits.softmax(-1)
    average = shares.mean(0)
    entropy = -(shares * logits.log_softmax(-1)).sum(-1).mean()
    entropy = entropy + (average * (average + 1e-5).log()).sum()
    commitment = (x - torch.where(x > 0, 1.0, -1.0)).square().mean()
    total = entropy + 0.25 * commitment + (x * w).sum()
    (gradient,) = torch.autograd.grad(total, x)
    return gradient


def rounding_bound(x: Tensor, w: Tensor, temperature: float = 0.01) -> Tensor:
    """Largest error of each entry of the gradient, float64 like `x`, from the values in float64.

    A logit l of size |l| is rounded by ``e |l|``, so a probability p is off by at most
    ``e p (|l_c| + sum p |l|)`` and its logarithm by the bracket. The gradient by a logit is p times
    a sum of logarithms and entropies, which cancel: each counts with its own size.
    """
    x = x.detach().double()
    rows = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
    codes = all_codes(x.shape[1]).double()
    logits = 2 * rows @ codes.t() / temperature
    p, log_p = logits.softmax(-1), logits.log_softmax(-1).abs()
    # The sum over bits is rounded at the size of its terms, not of what is left of them.
    sizes = (2 * rows.abs().sum(-1, keepdim=True) / temperature).expand_as(p)
    moved = sizes + (p * sizes).sum(-1, keepdim=True)
    log_mean = (p.mean(0, keepdim=True) + 1e-5).log().abs().expand_as(p)
    terms = log_p + log_mean + ((log_p + log_mean) * p).sum(-1, keepdim=True) + 2.0
    by_logit = p * (terms + terms * moved + moved) / len(rows)
    by_row = by_logit @ codes.abs() * 2 / temperature
    batch, _, height, width = x.shape
    entropy = by_row.view(batch, height, width, -1).permute(0, 3, 1, 2)
    direct = w.double().abs() + 0.5 * (x.abs() + 1.0) / x.numel()
    return ROUNDINGS * torch.finfo(torch.float32).eps * (entropy + direct)


def assert_gradient_within_rounding(
    gradient: Tensor, x: Tensor, w: Tensor, derived: Tensor | None = None
) -> None:
    """Every entry of the fp32 gradient within the bound of the float64 one."""
    exact = exact_gradient(x, w)
    if derived is not None:
        torch.testing.assert_close(exact, derived, rtol=1e-5, atol=1e-6)
    excess = (gradient.double() - exact).abs() / rounding_bound(x, w)
    assert float(excess.max()) <= 1.0, f"{float(excess.max()):.2f} times the rounding of fp32"
