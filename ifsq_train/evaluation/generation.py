"""Frechet distance between two sets of images in the feature space of a network.

With FID-Inception's 2048 pooled features it is the FID; with any other network its numbers compare
only with each other. Moments are streamed in float64, so neither features nor images are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

_HELD_ROWS = 2048
"""Rows that are collected before the moments take them in: each time costs several passes over a
matrix of 33 MB (2048 features), however few rows there are."""


class FeatureMoments:
    """Running mean and covariance of feature rows (Chan et al. 1983), in float64.

    Args:
        dim: features per row.
    """

    def __init__(self, dim: int) -> None:
        self._count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)
        self._held: list[Tensor] = []

    @property
    def dim(self) -> int:
        """Features per row."""
        return len(self._mean)

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._count + sum(len(rows) for rows in self._held)

    @property
    def mean(self) -> Tensor:
        """Mean of the rows so far, float64 [dim]; zeros before the first."""
        self._take_in()
        return self._mean

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Count rows float [N, dim], on any device; N may be 0 (a rank without images)."""
        assert features.dim() == 2
        assert features.shape[1] == self.dim
        if len(features) == 0:
            return
        self._held.append(features.detach().clone())
        if sum(len(rows) for rows in self._held) >= _HELD_ROWS:
            self._take_in()

    def merge(self, other: FeatureMoments) -> None:
        """Take over what another accumulator has counted, such as another rank's."""
        assert self.dim == other.dim
        self._take_in()
        other._take_in()
        if other._count:
            self._combine(other._count, other._mean, other._scatter)

    def _take_in(self) -> None:
        """The rows held so far into the moments."""
        if not self._held:
            return
        rows = torch.cat(self._held).double()
        self._held = []
        mean = rows.mean(0)
        self._combine(len(rows), mean.cpu(), _gram(rows.sub_(mean)))

    def _combine(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self._count + count
        gap = mean - self._mean
        self._scatter += scatter
        self._scatter.addr_(gap, gap, alpha=self._count * count / total)
        self._mean = self._mean + gap * (count / total)
        self._count = total

    def covariance(self) -> Tensor:
        """Sample covariance (denominator N - 1), float64 [dim, dim].

        Raises:
            ValueError: fewer than two rows.
        """
        self._take_in()
        if self._count < 2:
            raise ValueError(f"a covariance needs at least 2 samples, found {self._count}")
        return self._scatter / (self._count - 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to save or to send; `from_state` is the inverse."""
        self._take_in()
        return {"count": torch.tensor(self._count), "mean": self._mean, "scatter": self._scatter}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> FeatureMoments:
        """Restore an accumulator from its `state`."""
        moments = cls(len(state["mean"]))
        moments._count = int(state["count"])
        moments._mean, moments._scatter = state["mean"].clone(), state["scatter"].clone()
        return moments


def _gram(rows: Tensor) -> Tensor:
    """``rows^T rows`` of float64 [N, D] on the CPU; half of a symmetric product need not be made,
    which NumPy knows of a matrix and its own transpose."""
    if rows.device.type != "cpu":
        return (rows.t() @ rows).cpu()
    own = rows.numpy()
    return torch.from_numpy(own.T @ own)


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
    """F [D, r] in float64 with F F^T the covariance of rank r.

    Cholesky's where the covariance has full rank. Otherwise (fewer samples than features) from its
    eigenvectors, without eigenvalues of rounding size; dearer: keep it where one set is compared
    several times.
    """
    symmetric = (covariance.double() + covariance.double().t()) / 2.0
    rounding = len(symmetric) * torch.finfo(symmetric.dtype).eps
    lower, failed = torch.linalg.cholesky_ex(symmetric)
    pivots = lower.diagonal().square()
    if not int(failed) and bool(pivots.min() > symmetric.diagonal().max() * rounding):
        return lower
    values, vectors = torch.linalg.eigh(symmetric)
    kept = values > values[-1] * rounding
    return vectors[:, kept] * values[kept].sqrt()


def frechet_distance_of_factors(
    mean1: Tensor, factor1: Tensor, mean2: Tensor, factor2: Tensor
) -> float:
    """`frechet_distance` of means [D] and `covariance_factor`s.

    The trace of the matrix root is the nuclear norm of F1^T F2, so rank-deficient covariances need
    no jitter, unlike the root of the unsymmetric product C1 C2.
    """
    gap = (mean1.double() - mean2.double()).square().sum()
    spread = factor1.square().sum() + factor2.square().sum()
    overlap = nuclear_norm(factor1.t() @ factor2, float(spread))
    return float(gap + spread) - 2.0 * overlap


_NORM_TOLERANCE = 1e-9
"""Largest error of a nuclear norm, over the scale it is compared with."""


def nuclear_norm(matrix: Tensor, scale: float) -> float:
    """Sum of the singular values of float64 [m, n].

    As roots of the eigenvalues of ``matrix^T matrix``, three times as fast, where what rounding
    does to the small ones stays below 1e-9 of `scale`; else as singular values, each exact to
    rounding.
    """
    values = torch.linalg.eigvalsh(_gram(matrix)).clamp_min(0.0)
    error = 8.0 * torch.finfo(values.dtype).eps * float(values.max())
    # The root of v + e is off by e / 2 root(v), and by root(e) where v is nothing.
    bound = (error / (values + error).sqrt()).sum()
    if float(bound) <= _NORM_TOLERANCE * scale:
        return float(values.sqrt().sum())
    return float(torch.linalg.svdvals(matrix).sum())
