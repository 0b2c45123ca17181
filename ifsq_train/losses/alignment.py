"""Agreement of a generator's hidden states with a teacher's features (REPA, Yu et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment_loss(projections: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Minus the mean cosine over teachers, samples and positions (released llamagen/train.py).

    Position i of an autoregressive model pairs with patch i: it has seen the class and the
    tokens before i, so what is aligned is a prediction of that patch.

    Args:
        projections: per teacher, projector outputs float [B, T, Z].
        targets: per teacher, its patch features [B, T, Z]; no gradient goes into them.

    Returns:
        fp32 scalar in [-1, 1].

    Raises:
        ValueError: no teacher, or shapes that differ.
    """
    shapes = [tuple(part.shape) for part in projections], [tuple(part.shape) for part in targets]
    if not projections or shapes[0] != shapes[1]:
        raise ValueError(f"projections {shapes[0]} do not pair with teacher features {shapes[1]}")
    cosines = [
        F.cosine_similarity(mine.float(), theirs.detach().float(), dim=-1).mean()
        for mine, theirs in zip(projections, targets, strict=True)
    ]
    return -torch.stack(cosines).mean()
