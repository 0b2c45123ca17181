"""Inception Score, precision and recall, and reference files: known values and refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipelines.errors import DataError
from ifsq_train.evaluation.generation import FeatureMoments
from ifsq_train.evaluation.inception_statistics import (
    GaussianStatistics,
    InceptionStatistics,
    distance,
    inception_score,
    read_adm_statistics,
)
from ifsq_train.evaluation.manifold import manifold_radii, precision_recall
from ifsq_train.models.inception import NUM_FEATURES, NUM_SPATIAL, FidInception


def normal(count: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def test_precision_and_recall_against_the_definition() -> None:
    real, fake = normal(40, 5, 0), normal(60, 5, 1) * 1.3 + 0.4

    def inside(points: np.ndarray, rows: np.ndarray, k: int) -> float:
        own = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
        radii = np.sort(own, axis=1)[:, k]
        apart = np.linalg.norm(points[:, None] - rows[None], axis=-1)
        return float((apart <= radii[None]).any(1).mean())

    a, b = real.double().numpy(), fake.double().numpy()
    for k in (1, 3, 7):
        found = precision_recall(real, fake, k)
        assert found == pytest.approx((inside(b, a, k), inside(a, b, k)))


def test_equal_sets_have_precision_and_recall_one_and_distant_ones_zero() -> None:
    rows = normal(30, 4, 0)
    assert precision_recall(rows, rows) == (1.0, 1.0)
    assert precision_recall(rows, rows + 100.0) == (0.0, 0.0)


def test_too_few_images_for_the_neighbours() -> None:
    with pytest.raises(ValueError, match="need more than 3 images, found 3"):
        manifold_radii(normal(3, 4, 0), 3)


def test_inception_score_of_known_distributions() -> None:
    one_hot = torch.eye(8).repeat(4, 1)
    assert inception_score(one_hot) == pytest.approx(8.0)
    assert inception_score(torch.full((10, 5), 0.2)) == pytest.approx(1.0)
    halves = torch.cat([one_hot, torch.full((32, 8), 0.125)])
    assert inception_score(halves, split=32) == pytest.approx((8.0 + 1.0) / 2)
    with pytest.raises(ValueError, match="at least one"):
        inception_score(torch.zeros(0, 8))


def test_adm_statistics_are_read_and_compared(tmp_path: Path) -> None:
    rows = normal(50, NUM_FEATURES, 0).double()
    moments = FeatureMoments(NUM_FEATURES)
    moments.add(rows)
    path = tmp_path / "reference.npz"
    np.savez(path, mu=rows.mean(0).numpy(), sigma=np.cov(rows.numpy(), rowvar=False))
    found = read_adm_statistics(path)
    assert set(found) == {"pooled"}
    assert torch.allclose(found["pooled"].mean, moments.mean)
    assert torch.allclose(found["pooled"].covariance, moments.covariance(), atol=1e-12)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros(3)}, "needs 'mu' and 'sigma'"),
        ({"mu": np.zeros(5), "sigma": np.zeros((5, 5))}, "expected 2048 features"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, arrays: dict, message: str) -> None:
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(DataError, match=message):
        read_adm_statistics(tmp_path / "other.npz")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.npz: not a file of reference statistics"):
        read_adm_statistics(tmp_path / "none.npz")


def test_distance_of_known_gaussians() -> None:
    def gaussian(mean: float, variance: float) -> GaussianStatistics:
        eye = torch.eye(3, dtype=torch.float64)
        return GaussianStatistics(torch.full((3,), mean, dtype=torch.float64), eye * variance, None)

    expected = 3 * (2.0**2 + (math.sqrt(4.0) - math.sqrt(1.0)) ** 2)
    assert distance(gaussian(0, 1), gaussian(2, 4)) == pytest.approx(expected)


def test_features_of_shares_of_a_set_merge_to_those_of_the_set() -> None:
    torch.manual_seed(0)
    network = FidInception().eval()
    network.classifier = torch.randn(1008, NUM_FEATURES) * 0.01
    images = torch.rand(5, 3, 32, 32) * 2 - 1
    whole, first, second, empty = (InceptionStatistics(4) for _ in range(4))
    whole.add(network, images)
    first.add(network, images[:2])
    second.add(network, images[2:])
    empty.add(network, images[:0])
    empty.merge(first)
    empty.merge(second)
    assert whole.pooled.count == empty.pooled.count == 5
    assert torch.allclose(whole.pooled.covariance(), empty.pooled.covariance(), atol=1e-6)
    assert torch.allclose(whole.spatial.mean, empty.spatial.mean, atol=1e-5)
    assert whole.spatial.dim == NUM_SPATIAL == 2023
    assert torch.allclose(whole.rows, empty.rows, atol=1e-5)
    assert whole.rows.shape == (4, NUM_FEATURES)
    assert torch.allclose(whole.shares, empty.shares, atol=1e-6)
    assert torch.allclose(whole.shares.sum(1), torch.ones(5))
