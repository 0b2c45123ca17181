"""Teacher features as extra columns: as they are, in half precision, or in eight bits per token."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_pipelines.tokens.format import ExtraColumn

FEATURES = "teacher_features"
"""Extra column [T, D]: float32, float16, or int8 in units of the token's scale."""
FEATURE_SCALES = "teacher_scales"
"""Extra column float32 [T], with int8 features only."""

FeaturePrecision = Literal["fp32", "fp16", "int8"]
_DTYPES: dict[FeaturePrecision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}
_INT8_MAX = 127


def feature_columns(
    precision: FeaturePrecision, num_tokens: int, dim: int
) -> dict[str, ExtraColumn]:
    """The columns for features [T, D] of a row."""
    columns = {FEATURES: ExtraColumn(_DTYPES[precision], (num_tokens, dim))}
    if precision == "int8":
        columns[FEATURE_SCALES] = ExtraColumn("float32", (num_tokens,))
    return columns


def feature_precision(columns: Mapping[str, ExtraColumn]) -> FeaturePrecision:
    """The precision that columns with features were made for; undoes `feature_columns`."""
    return next(p for p, dtype in _DTYPES.items() if dtype == columns[FEATURES].dtype)


def encode_features(
    features: NDArray[np.float32], precision: FeaturePrecision
) -> dict[str, NDArray[Any]]:
    """Float32 [B, T, D] to the values of the columns.

    int8: each token is divided by its largest magnitude / 127 and rounded to nearest even, so its
    direction, which is all that a cosine sees, is off by half a step in each of D dimensions.
    """
    if precision == "fp32":
        return {FEATURES: features}
    if precision == "fp16":
        return {FEATURES: features.astype(np.float16)}
    scales = np.abs(features).max(axis=-1) / np.float32(_INT8_MAX)
    steps = np.where(scales > 0, scales, np.float32(1))[..., None]
    return {FEATURES: np.rint(features / steps).astype(np.int8), FEATURE_SCALES: scales}


def decode_features(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The columns' values back to float32 [B, T, D]."""
    features = columns[FEATURES].astype(np.float32)
    if FEATURE_SCALES in columns:
        features *= columns[FEATURE_SCALES][..., None]
    return features
