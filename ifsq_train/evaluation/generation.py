"""Frechet distance between two sets of images in the feature space of a network.

With FID-Inception's 2048 pooled features it is the FID; with any other network its numbers compare
only with each other. Moments are streamed in float64, so neither features nor images are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor


class FeatureMoments:
    """Running mean and covariance of feature rows (Chan et al. 1983), in float64.

    Args:
        dim: features per row.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @property
    def dim(self) -> int:
        """Features per row."""
        return len(self.mean)

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Count rows float [N, dim], on any device; N may be 0 (a rank without images)."""
        assert features.dim() == 2
        assert features.shape[1] == self.dim
        if len(features) == 0:
            return
        rows = features.detach().double()
        mean = rows.mean(0)
        centred = rows - mean
        self._combine(len(rows), mean.cpu(), (centred.t() @ centred).cpu())

    def merge(self, other: FeatureMoments) -> None:
        """Take over what another accumulator has counted, such as another rank's."""
        assert self.dim == other.dim
        if other.count:
            self._combine(other.count, other.mean, other._scatter)

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        gap = mean - self.mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.count * count / total)
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def covariance(self) -> Tensor:
        """Sample covariance (denominator N - 1), float64 [dim, dim].

        Raises:
            ValueError: fewer than two rows.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, found {self.count}")
        return self._scatter / (self.count - 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save or to send; `from_state` is the inverse."""
        return {"count": torch.tensor(self.count), "mean": self.mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FeatureMoments:
        """What `state` was taken of."""
        moments = cls(len(state["mean"]))
        moments.count = int(state["count"])
        moments.mean, moments._scatter = state["mean"].clone(), state["scatter"].clone()
        return moments


def collect_moments(
    features: Callable[[Tensor], Tensor], batches: Iterable[Tensor]
) -> FeatureMoments:
    """Moments of a network's features over image batches.

    Args:
        features: images as in `batches` to features; further axes are averaged over, so that
            [N, D], [N, D, 1, 1] and [N, D, h, w] all give D features.
        batches: float [N, 3, H, W] in the network's own range.

    Raises:
        ValueError: no batch.
    """
    moments: FeatureMoments | None = None
    for batch in batches:
        with torch.no_grad():
            values = features(batch).float()
        rows = values.flatten(2).mean(2) if values.dim() > 2 else values
        if moments is None:
            moments = FeatureMoments(rows.shape[1])
        moments.add(rows)
    if moments is None:
        raise ValueError("no images to take features of")
    return moments


def frechet_distance(first: FeatureMoments, second: FeatureMoments) -> float:
    """Squared Frechet distance of the Gaussians with these moments (Dowson and Landau 1982).

    ``|m1 - m2|^2 + tr C1 + tr C2 - 2 tr (C1 C2)^(1/2)``. It is biased upwards for few samples:
    compare numbers of equal counts only.

    Raises:
        ValueError: features of different widths, or fewer than two samples.
    """
    if first.dim != second.dim:
        raise ValueError(f"features of different widths: {first.dim} and {second.dim}")
    return frechet_distance_of(first.mean, first.covariance(), second.mean, second.covariance())


def frechet_distance_of(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """`frechet_distance` of means [D] and covariances [D, D], computed in float64."""
    return frechet_distance_of_factors(
        mean1, covariance_factor(cov1), mean2, covariance_factor(cov2)
    )


def covariance_factor(covariance: Tensor) -> Tensor:
    """F [D, r] in float64 with F F^T the covariance of rank r; eigenvalues of rounding size count
    as zero. The dearest part of a distance: keep it where one set is compared several times."""
    symmetric = (covariance.double() + covariance.double().t()) / 2.0
    values, vectors = torch.linalg.eigh(symmetric)
    kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance_of_factors(
    mean1: Tensor, factor1: Tensor, mean2: Tensor, factor2: Tensor
) -> float:
    """`frechet_distance` of means [D] and `covariance_factor`s.

    The trace of the matrix root is the nuclear norm of F1^T F2: a sum of singular values, each
    exact to rounding, so rank-deficient covariances (fewer samples than features) need no jitter,
    unlike the root of the unsymmetric product C1 C2.
    """
    overlap = torch.linalg.svdvals(factor1.t() @ factor2).sum()
    gap = (mean1.double() - mean2.double()).square().sum()
    spread = factor1.square().sum() + factor2.square().sum()
    return float(gap + spread - 2.0 * overlap)
