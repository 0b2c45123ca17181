"""Frechet distance: streamed moments, and the matrix root of scipy."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ifsq_train.evaluation import generation
from ifsq_train.evaluation.generation import (
    FeatureMoments,
    collect_moments,
    covariance_factor,
    frechet_distance,
    frechet_distance_of,
    nuclear_norm,
)


def rows(count: int, dim: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64) @ mixing + seed


def moments(features: torch.Tensor, *cuts: int) -> FeatureMoments:
    result = FeatureMoments(features.shape[1])
    for part in features.tensor_split(cuts):
        result.add(part)
    return result


def test_streamed_moments_are_those_of_the_whole() -> None:
    features = rows(50, 6, 1) + 1e4  # far from zero: naive sums of squares would lose digits
    streamed = moments(features, 1, 7, 30)
    assert np.allclose(streamed.mean, features.mean(0), rtol=1e-14)
    assert np.allclose(streamed.covariance(), np.cov(features.T), rtol=1e-9)
    left, right = moments(features[:20]), moments(features[20:])
    left.merge(right)
    assert left.count == 50
    assert np.allclose(left.covariance(), np.cov(features.T), rtol=1e-9)


@pytest.mark.parametrize("held", [1, 4, 13])
def test_moments_do_not_depend_on_how_many_rows_are_collected(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "_HELD_ROWS", held)
    features = rows(50, 6, 1) + 1e4
    streamed = moments(features, 1, 7, 30)
    assert streamed.count == 50
    assert np.allclose(streamed.mean, features.mean(0), rtol=1e-14)
    assert np.allclose(streamed.covariance(), np.cov(features.T), rtol=1e-9)


def test_collected_rows_are_copies() -> None:
    batch = rows(9, 4, 1)
    expected = moments(batch).covariance()
    late = FeatureMoments(4)
    late.add(batch)
    batch.zero_()
    assert torch.equal(late.covariance(), expected)


@pytest.mark.parametrize("spread", [1.0, 1e3, 1e6, 1e12])
def test_nuclear_norm_is_that_of_singular_values(spread: float) -> None:
    """Also where squaring the small singular values would lose all their digits."""
    left, right = (torch.linalg.qr(rows(40, 40, seed))[0] for seed in (1, 2))
    values = torch.logspace(0, -np.log10(spread), 40, dtype=torch.float64)
    matrix = left @ values.diag() @ right
    assert abs(nuclear_norm(matrix, 1.0) - float(values.sum())) < 2e-9


@pytest.mark.parametrize("rank", [40, 5])
def test_factors_give_the_covariance_back(rank: int) -> None:
    source = rows(rank, 40, 3) if rank < 40 else rows(200, 40, 3)
    covariance = moments(source).covariance()
    factor = covariance_factor(covariance)
    assert factor.shape[1] == (40 if rank == 40 else rank - 1)
    assert torch.allclose(factor @ factor.t(), covariance, rtol=1e-9, atol=1e-9)


def test_a_batch_without_rows_changes_nothing() -> None:
    whole = moments(rows(9, 4, 1))
    late, early = moments(rows(9, 4, 1), 9), moments(rows(9, 4, 1), 0)
    for other in (late, early):
        assert other.count == 9
        assert torch.equal(other.covariance(), whole.covariance())


def test_distance_uses_the_matrix_root() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    first, second = moments(rows(90, 8, 1)), moments(rows(70, 8, 2))
    root = linalg.sqrtm(first.covariance().numpy() @ second.covariance().numpy()).real
    gap = (first.mean - second.mean).square().sum()
    traces = first.covariance().trace() + second.covariance().trace()
    expected = float(gap + traces - 2 * np.trace(root))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_distance_of_diagonal_gaussians_is_known() -> None:
    a, b = torch.tensor([1.0, 4.0]).double(), torch.tensor([9.0, 1.0]).double()
    mean = torch.zeros(2)
    distance = frechet_distance_of(mean, a.diag(), mean + 1, b.diag())
    assert distance == pytest.approx(2 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_fewer_samples_than_features_are_fine() -> None:
    few = moments(rows(5, 16, 3))
    assert frechet_distance(few, few) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(few, moments(rows(40, 16, 4))) > 0


def test_moments_survive_saving(tmp_path) -> None:
    original = moments(rows(20, 4, 5))
    save_file(original.state(), tmp_path / "moments.safetensors")
    loaded = FeatureMoments.from_state(load_file(tmp_path / "moments.safetensors"))
    assert loaded.count == 20
    assert torch.equal(loaded.covariance(), original.covariance())


def test_feature_maps_are_averaged_over_space() -> None:
    batches = [torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(i)) for i in (0, 1)]
    collected = collect_moments(lambda x: x, batches)
    pooled = torch.cat(batches).mean(dim=(2, 3))
    assert collected.count == 6
    assert torch.allclose(collected.mean.float(), pooled.mean(0), atol=1e-6)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="different widths: 4 and 5"):
        frechet_distance(moments(rows(9, 4, 1)), moments(rows(9, 5, 1)))
    with pytest.raises(ValueError, match="at least 2 samples, found 1"):
        moments(rows(1, 4, 1)).covariance()
    with pytest.raises(ValueError, match="no images"):
        collect_moments(lambda x: x, [])
