"""Precision and recall of more points than are looked at at once."""

from __future__ import annotations

import numpy as np

from ifsq_train.evaluation.manifold import precision_recall


def by_definition(points: np.ndarray, features: np.ndarray, neighbors: int = 3) -> float:
    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))

    radii = np.sort(distances(features, features), axis=1)[:, neighbors]
    return float((distances(points, features) <= radii).any(1).mean())


def test_all_points_count() -> None:
    """2,500 and 2,300 points; those beyond the first 2,048 lie elsewhere than the first ones."""
    import torch

    rng = np.random.default_rng(0)
    real = rng.normal(size=(2500, 2)).astype(np.float32)
    fake = (rng.normal(size=(2300, 2)) * 0.7 + 0.5).astype(np.float32)
    real[2048:] += 6.0
    fake[2048:] += 7.0
    precision, recall = precision_recall(torch.from_numpy(real), torch.from_numpy(fake))
    # A distance equal to a radius may round either way: at most a few points of thousands.
    assert abs(precision - by_definition(fake, real)) < 2e-3
    assert abs(recall - by_definition(real, fake)) < 2e-3
    assert 0.05 < recall < 0.95
