"""Teacher features on disk: what half precision and eight bits cost."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from data_pipelines.tokens.features import (
    FEATURE_SCALES,
    FEATURES,
    FeaturePrecision,
    decode_features,
    encode_features,
    feature_columns,
)


@pytest.fixture(scope="module")
def features() -> NDArray[np.float32]:
    """Like a vision transformer's: a few dimensions far larger than the others."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(4, 16, 384)).astype(np.float32)
    values[..., :3] *= 20
    return values


def cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return (a * b).sum(-1) / norms


@pytest.mark.parametrize(("precision", "loss"), [("fp32", 1e-12), ("fp16", 1e-7), ("int8", 2e-2)])
def test_features_come_back(
    features: NDArray[np.float32], precision: FeaturePrecision, loss: float
) -> None:
    stored = encode_features(features, precision)
    declared = feature_columns(precision, 16, 384)
    assert {n: (v.dtype.name, v.shape[1:]) for n, v in stored.items()} == {
        name: (column.dtype, column.shape) for name, column in declared.items()
    }
    assert cosines(decode_features(stored), features).min() > 1 - loss


def test_eight_bits_are_off_by_half_a_step_at_most(features: NDArray[np.float32]) -> None:
    stored = encode_features(features, "int8")
    error = np.abs(decode_features(stored) - features)
    assert (error <= stored[FEATURE_SCALES][..., None] * 0.5001).all()
    assert np.abs(stored[FEATURES]).max() == 127


def test_a_token_without_features_stays_zero() -> None:
    stored = encode_features(np.zeros((1, 2, 8), np.float32), "int8")
    assert not decode_features(stored).any()
