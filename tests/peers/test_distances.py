"""Distances of features equal those of pytorch-fid and torch-fidelity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ifsq_train.evaluation.generation import FeatureMoments, frechet_distance
from ifsq_train.evaluation.kernel_distance import kernel_distance

_FEATURES = torch.Generator().manual_seed(0)
REAL = torch.randn(300, 24, generator=_FEATURES, dtype=torch.float64)
FAKE = torch.randn(200, 24, generator=_FEATURES, dtype=torch.float64) * 1.3 + 0.2


def test_frechet_distance_of_pytorch_fid() -> None:
    fid = pytest.importorskip(
        "pytorch_fid.fid_score", reason="pytorch-fid is not installed: make test-peers"
    )
    statistics, moments = [], []
    for rows in (REAL, FAKE):
        statistics += [rows.mean(0).numpy(), np.cov(rows.numpy(), rowvar=False)]
        collected = FeatureMoments(rows.shape[1])
        collected.add(rows)
        moments.append(collected)
    theirs = fid.calculate_frechet_distance(*statistics)
    assert frechet_distance(*moments) == pytest.approx(theirs, rel=1e-4)


def test_kernel_distance_of_torch_fidelity() -> None:
    kid = pytest.importorskip(
        "torch_fidelity.metric_kid", reason="torch-fidelity is not installed: make test-peers"
    )
    real, fake = (rows[:200].numpy() for rows in (REAL, FAKE))
    settings = {"kid_kernel": "poly", "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None}
    theirs = kid.kernel_mmd(real, fake, **settings, kid_kernel_poly_coef0=1)
    found = kernel_distance(torch.from_numpy(real), torch.from_numpy(fake))
    assert found == pytest.approx(float(theirs), rel=1e-6)
