"""What FID, sFID, Inception Score and precision and recall need of a set of images, streamed.

Features are in fp32, moments in float64. The spatial features are those of ADM's evaluator: seven
channels of the 1x1 branch of Mixed_6d, 17 x 17 each.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from data_pipelines.array_files import open_npz
from data_pipelines.errors import DataError
from ifsq_train.evaluation.generation import (
    FeatureMoments,
    covariance_factor,
    frechet_distance_of_factors,
)
from ifsq_train.models.inception import NUM_FEATURES, NUM_SPATIAL, FidInception
from ifsq_train.models.inference import channels_last

SCORE_SPLIT = 5000
_ADM_NAMES = (("pooled", "mu", "sigma"), ("spatial", "mu_s", "sigma_s"))


@dataclass(frozen=True)
class GaussianStatistics:
    """Mean [D] and covariance [D, D] in float64, and how many images they are of, if known."""

    mean: Tensor
    covariance: Tensor
    count: int | None

    @cached_property
    def factor(self) -> Tensor:
        """See `covariance_factor`."""
        return covariance_factor(self.covariance)

    @classmethod
    def of(cls, moments: FeatureMoments) -> GaussianStatistics:
        """Mean, covariance and count of the accumulated features.

        Raises:
            ValueError: fewer than two images.
        """
        return cls(moments.mean, moments.covariance(), moments.count)


def distance(first: GaussianStatistics, second: GaussianStatistics) -> float:
    """Frechet distance, see `generation.frechet_distance_of_factors`."""
    return frechet_distance_of_factors(first.mean, first.factor, second.mean, second.factor)


class InceptionStatistics:
    """Everything kept of one set of images.

    Args:
        num_rows: features of this many images are kept for precision and recall; 0 keeps none.

    Attributes:
        pooled, spatial: moments of the 2,048 pooled and 2,023 spatial features.
        rows: kept pooled features, float32 [n, 2048] on the CPU.
        shares: class probabilities float32 [N, 1008] on the CPU, empty without a classifier.
    """

    def __init__(self, num_rows: int = 0) -> None:
        self.pooled, self.spatial = FeatureMoments(NUM_FEATURES), FeatureMoments(NUM_SPATIAL)
        self._num_rows = num_rows
        self._rows: list[Tensor] = []
        self._shares: list[Tensor] = []

    @torch.no_grad()
    def add(self, network: FidInception, images: Tensor) -> None:
        """Count images float [B, 3, H, W] in [-1, 1]; B may be 0."""
        if len(images) == 0:
            return
        features = network.features(channels_last(images))
        self.pooled.add(features.pooled)
        self.spatial.add(features.spatial)
        wanted = self._num_rows - sum(map(len, self._rows))
        if wanted > 0:
            self._rows.append(features.pooled[:wanted].cpu())
        if features.shares is not None:
            self._shares.append(features.shares.cpu())

    def merge(self, other: InceptionStatistics) -> None:
        """Take over what another rank has counted, after one's own."""
        self.pooled.merge(other.pooled)
        self.spatial.merge(other.spatial)
        self._rows = [self.rows, other.rows[: max(0, self._num_rows - len(self.rows))]]
        self._shares += other._shares

    @property
    def rows(self) -> Tensor:
        """Kept pooled features."""
        return torch.cat([torch.zeros(0, NUM_FEATURES), *self._rows])

    @property
    def shares(self) -> Tensor:
        """Class probabilities in the order of counting."""
        return torch.cat(self._shares) if self._shares else torch.zeros(0, 0)


def inception_score(shares: Tensor, split: int = SCORE_SPLIT) -> float:
    """exp of the mean divergence of class probabilities from their mean (Salimans et al. 2016).

    Args:
        shares: float [N, classes], rows sum to 1.
        split: the score is taken of this many rows at a time and averaged, as ADM's evaluator
            does; the last split may be smaller.

    Raises:
        ValueError: no row.
    """
    if len(shares) == 0:
        raise ValueError("the Inception Score needs at least one image")
    scores = []
    for part in shares.double().split(split):
        mean = part.mean(0, keepdim=True)
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, mean)).sum(1)
        scores.append(divergence.mean().exp())
    return float(torch.stack(scores).mean())


def read_adm_statistics(path: Path) -> Mapping[str, GaussianStatistics]:
    """Reference statistics of ADM's evaluator: ``pooled`` and, if the file has them, ``spatial``.

    Args:
        path: npz with ``mu`` and ``sigma``, optionally ``mu_s`` and ``sigma_s``.

    Raises:
        DataError: no such file, or not of that form.
    """
    found: dict[str, GaussianStatistics] = {}
    try:
        with open_npz(path, str(path)) as arrays:
            names = set(arrays.files)
            for kind, mean, covariance in _ADM_NAMES:
                if {mean, covariance} <= names:
                    parts = [torch.from_numpy(arrays[key]).double() for key in (mean, covariance)]
                    found[kind] = GaussianStatistics(parts[0], parts[1], None)
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a file of reference statistics ({error})") from error
    wanted = {"pooled": NUM_FEATURES, "spatial": NUM_SPATIAL}
    for kind, one in found.items():
        if one.mean.shape != (wanted[kind],) or one.covariance.shape != (wanted[kind],) * 2:
            raise DataError(
                f"{path}: {kind} statistics of shape {tuple(one.mean.shape)}, expected"
                f" {wanted[kind]} features of Inception"
            )
        if not bool(one.mean.isfinite().all() and one.covariance.isfinite().all()):
            raise DataError(f"{path}: {kind} statistics have values that are not finite")
    if "pooled" not in found:
        raise DataError(f"{path}: has {sorted(names)}, needs 'mu' and 'sigma' as ADM's files have")
    return found
