"""Numbers of the stages `distribution` and `toy`: what a bound makes of latents."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config.study import DistributionStage, ToyStage
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.evaluation.image_sets import HeldOutImages

_HISTOGRAM_BINS = 20
_TOY_RANGE = 3.0
_BATCH = 128


def measure_distribution(config: DistributionStage) -> dict[str, Any]:
    """How far from uniform the bound's output is, and how evenly it fills the levels.

    Returns:
        ``ks`` and ``cdf_rmse``: largest and root mean square difference of the output's
        distribution function from the uniform one; ``level_entropy_bits``, ``utilisation``
        (2 ** entropy over levels), ``latent_std``, ``histogram`` (shares of equal bins of
        [-1, 1]). Means over channels for a tokenizer's latents.
    """
    columns = _latents(config)
    each = [_measure_channel(config, column) for column in columns]
    found = {key: float(np.mean([one[key] for one in each])) for key in each[0] if key != "shares"}
    histogram = np.mean([one["shares"] for one in each], axis=0)
    return {**found, "histogram": [float(share) for share in histogram]}


def _measure_channel(config: DistributionStage, z: NDArray[np.float64]) -> dict[str, Any]:
    y = np.sort(2.0 / (1.0 + np.exp(-config.alpha * z)) - 1.0)
    cdf, error = np.arange(1, len(y) + 1) / len(y), (y + 1.0) / 2.0
    gap = np.maximum(np.abs(cdf - error), np.abs(cdf - 1.0 / len(y) - error))
    # The mean square over uniform y, by the trapezoidal rule on an even grid.
    grid = np.linspace(-1.0, 1.0, 2001)
    steps = np.searchsorted(y, grid, side="right") / len(y) - (grid + 1.0) / 2.0
    half = (config.levels - 1) / 2.0
    scaled = y * (half if config.cells == "paper" else config.levels / 2.0)
    digits = np.clip(np.rint(scaled), -half, half).astype(np.int64)
    shares = np.unique(digits, return_counts=True)[1] / len(y)
    entropy = float(-(shares * np.log2(shares)).sum())
    return {
        "ks": float(gap.max()),
        "cdf_rmse": float(math.sqrt(np.mean(steps**2))),
        "level_entropy_bits": entropy,
        "utilisation": 2.0**entropy / config.levels,
        "latent_mean": float(z.mean()),
        "latent_std": float(z.std()),
        "shares": np.histogram(y, bins=_HISTOGRAM_BINS, range=(-1.0, 1.0))[0] / len(y),
    }


def _latents(config: DistributionStage) -> NDArray[np.float64]:
    """Latents before the bound, float64 [C, N]."""
    if config.tokenizer is None:
        generator = np.random.default_rng(config.seed)
        return generator.standard_normal((1, config.draws))
    assert config.data is not None
    assert config.view is not None
    network = load_tokenizer(config.tokenizer).network
    images = HeldOutImages(config.data, config.view, _BATCH)
    parts = []
    for batch in images.batches(InProcessContext(device=torch.device("cpu"))):
        with torch.inference_mode():
            latents = network.quant_conv(network.encoder(batch))
        parts.append(latents.transpose(0, 1).flatten(1).double().numpy())
    columns = np.concatenate(parts, axis=1)
    if config.standardize:
        columns = columns - columns.mean(1, keepdims=True)
        columns = columns / columns.std(1, keepdims=True)
    return columns


def measure_toy(config: ToyStage) -> dict[str, Any]:
    """Use of the bins and mean absolute error of one way to cut a standard normal variable.

    ``equal_interval`` cuts [-3, 3] into equal bins, each standing for its middle;
    ``equal_probability`` puts edges at quantiles; ``ifsq`` takes the bound's output, spread over
    [-3, 3], in equal bins.

    Returns:
        ``entropy_bits``, ``utilisation`` (entropy over log2 of the levels), ``error``.
    """
    z = np.random.default_rng(config.seed).standard_normal(config.draws)
    z = z[np.abs(z) < _TOY_RANGE]
    if config.method == "ifsq":
        z = _TOY_RANGE * (2.0 / (1.0 + np.exp(-config.alpha * z)) - 1.0)
    if config.method == "equal_probability":
        inner = np.quantile(z, np.arange(1, config.levels) / config.levels)
        edges = np.concatenate([[-_TOY_RANGE], inner, [_TOY_RANGE]])
    else:
        edges = np.linspace(-_TOY_RANGE, _TOY_RANGE, config.levels + 1)
    places = np.clip(np.searchsorted(edges, z, side="right") - 1, 0, config.levels - 1)
    middles = (edges[:-1] + edges[1:]) / 2.0
    shares = np.bincount(places, minlength=config.levels) / len(z)
    used = shares[shares > 0]
    entropy = float(-(used * np.log2(used)).sum())
    return {
        "entropy_bits": entropy,
        "utilisation": entropy / math.log2(config.levels),
        "error": float(np.abs(z - middles[places]).mean()),
    }
