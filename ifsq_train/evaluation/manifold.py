"""Precision and recall of samples (Kynkaanniemi et al. 2019), as ADM's evaluator reports them."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS_AT_ONCE = 2048


def manifold_radii(features: Tensor, neighbors: int = 3) -> Tensor:
    """Distance of every row to its `neighbors`-th nearest other row, float32 [N].

    Raises:
        ValueError: not more rows than neighbours.
    """
    if len(features) <= neighbors:
        raise ValueError(
            f"precision and recall with {neighbors} neighbours need more than {neighbors} images,"
            f" found {len(features)}"
        )
    parts = []
    for rows in features.split(_ROWS_AT_ONCE):
        distances = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist")
        # The nearest of all is the row itself.
        parts.append(distances.kthvalue(neighbors + 1, dim=1).values)
    return torch.cat(parts)


def share_inside(points: Tensor, features: Tensor, radii: Tensor) -> float:
    """Share of points [M, D] within the radius of at least one row of features [N, D]."""
    inside = 0
    for rows in points.split(_ROWS_AT_ONCE):
        distances = torch.cdist(rows, features, compute_mode="donot_use_mm_for_euclid_dist")
        inside += int((distances <= radii).any(1).sum())
    return inside / len(points)


def precision_recall(real: Tensor, fake: Tensor, neighbors: int = 3) -> tuple[float, float]:
    """Share of samples on the manifold of real images, and of real images on the samples'.

    Args:
        real, fake: features float [N, D] and [M, D], such as Inception's 2048.
        neighbors: a row's manifold reaches to this many-th nearest neighbour.

    Raises:
        ValueError: too few rows of either.
    """
    real, fake = real.float(), fake.float()
    precision = share_inside(fake, real, manifold_radii(real, neighbors))
    recall = share_inside(real, fake, manifold_radii(fake, neighbors))
    return precision, recall
