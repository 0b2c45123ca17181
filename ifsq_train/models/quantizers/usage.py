"""How a batch uses its codes, in fixed shapes: nothing here waits for a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def token_entropy_bits(indices: Tensor, codebook_sizes: Sequence[int]) -> Tensor:
    """Entropy of a batch's tokens over the whole codebook, in bits; at most log2 of their number.

    Args:
        indices: int64 [..., num_groups]; groups are taken together as one token.
        codebook_sizes: entries of each group. Beyond a product of 2**63 numbers wrap around,
            which gives two tokens of a batch the same number only by rare chance.

    Returns:
        fp32 scalar.
    """
    tokens = torch.zeros_like(indices[..., 0]).flatten()
    for group in reversed(range(len(codebook_sizes))):
        tokens = tokens * codebook_sizes[group] + indices[..., group].flatten()
    ordered = tokens.sort().values
    first = torch.searchsorted(ordered, ordered)
    last = torch.searchsorted(ordered, ordered, right=True)
    share = (last - first).float() / len(ordered)
    return -share.log2().mean()


@torch.no_grad()
def count_levels(digits: Tensor, levels: Sequence[int]) -> Tensor:
    """How often each level of each channel occurs.

    Args:
        digits: int64 [B, C, ...], channel c in 0..levels[c]-1.
        levels: levels per channel.

    Returns:
        int64 [C, max(levels)]; entries beyond a channel's levels are zero.
    """
    width = max(levels)
    # Digits of latents that are not finite are out of range; a GPU would abort the process.
    rows = digits.transpose(0, 1).flatten(1).clamp(0, width - 1)
    places = rows + torch.arange(len(levels), device=digits.device).unsqueeze(1) * width
    counts = torch.zeros(len(levels) * width, dtype=torch.int64, device=digits.device)
    ones = torch.ones_like(places).flatten()
    return counts.scatter_add_(0, places.flatten(), ones).view(len(levels), width)


@torch.no_grad()
def level_entropies_bits(counts: Tensor) -> Tensor:
    """Entropy of each row of counts [C, L] in bits, fp32 [C]."""
    shares = counts.float() / counts.sum(1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(1) / math.log(2.0)
