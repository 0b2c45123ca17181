"""Next-token cross-entropy of image tokens, one codebook or several per position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def token_cross_entropy(
    logits: Sequence[Tensor], tokens: Tensor, group_weights: Sequence[float] | None = None
) -> Tensor:
    """Mean over tokens, summed over groups (released llamagen/train.py).

    Args:
        logits: one tensor [B, T, V_g] per group.
        tokens: int64 [B, T] or [B, T, G].
        group_weights: weight of each group's mean; all 1 when None.

    Returns:
        fp32 scalar, nats per position.
    """
    targets = tokens.unsqueeze(-1) if tokens.dim() == 2 else tokens
    losses = [
        F.cross_entropy(part.float().flatten(0, 1), targets[..., group].flatten())
        for group, part in enumerate(logits)
    ]
    return sum_of_group_means(losses, group_weights)


def sum_of_group_means(
    group_losses: Sequence[Tensor], group_weights: Sequence[float] | None = None
) -> Tensor:
    """`token_cross_entropy` of group means that a model has computed itself.

    Args:
        group_losses: one mean per group, nats.
        group_weights: weight of each group's mean; all 1 when None.

    Returns:
        fp32 scalar, nats per position.
    """
    weights = group_weights if group_weights is not None else [1.0] * len(group_losses)
    terms = [weight * loss.float() for loss, weight in zip(group_losses, weights, strict=True)]
    return torch.stack(terms).sum()
