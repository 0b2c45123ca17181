"""How alike two networks see the same images: CKNNA (Huh et al. 2024; released cknna.py)."""

from __future__ import annotations

import torch
from torch import Tensor


def hsic(first: Tensor, second: Tensor, *, unbiased: bool = True) -> Tensor:
    """Hilbert-Schmidt independence of two kernel matrices [N, N]; scalar.

    Unbiased is the estimator of Song et al. 2012 (diagonals count as zero); biased is
    ``tr(K H L H)``, without the usual factor 1 / (N - 1)^2, as released.
    """
    n = len(first)
    if not unbiased:
        centred = second - second.mean(0, keepdim=True)
        centred = centred - centred.mean(1, keepdim=True)
        return (first * centred.t()).sum()
    k, l_t = _zero_diagonal(first), _zero_diagonal(second).t()
    own = (k * l_t).sum()
    sums = k.sum() * l_t.sum() / ((n - 1) * (n - 2))
    # Sum of all entries of K L, without forming the product.
    cross = 2.0 * (k.sum(0) * l_t.sum(0)).sum() / (n - 2)
    return (own + sums - cross) / (n * (n - 3))


def cknna(first: Tensor, second: Tensor, *, neighbors: int = 10, unbiased: bool = True) -> float:
    """Alignment of two feature sets over their mutual nearest neighbours, 1 for equal sets.

    Features are neither centred nor normalised, as released; normalise before if wanted.

    Args:
        first, second: float [N, D1] and [N, D2], row i of the same image.
        neighbors: nearest neighbours per row that count, 1..N-1.
        unbiased: which `hsic`; with the biased one a row may be its own neighbour.

    Raises:
        ValueError: unequal rows, fewer than 4, or too many neighbours.
    """
    n = len(first)
    if n != len(second) or n < 4:
        raise ValueError(f"CKNNA needs two sets of the same at least 4 rows: {n}, {len(second)}")
    if not 1 <= neighbors < n:
        raise ValueError(f"neighbors={neighbors} with {n} rows; use 1 to {n - 1}")
    k, l = (features.double() @ features.double().t() for features in (first, second))  # noqa: E741
    near_k, near_l = (_nearest(kernel, neighbors, unbiased) for kernel in (k, l))

    def masked(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
        return hsic(a * mask, b * mask, unbiased=unbiased)

    shared = masked(k, l, near_k * near_l)
    scale = (masked(k, k, near_k) * masked(l, l, near_l)).sqrt() + 1e-6
    return float(shared / scale)


class PairedFeatures:
    """Features of two networks for the same images, the first `limit` of them.

    Args:
        limit: images that are kept; over ranks, those of the first ranks.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._parts: list[tuple[Tensor, Tensor]] = []

    @property
    def num_images(self) -> int:
        """Images kept."""
        return min(self._limit, sum(len(part) for part, _ in self._parts))

    def add(self, first: Tensor, second: Tensor) -> None:
        """Rows float [N, D1] and [N, D2], row i of the same image."""
        if self.num_images < self._limit:
            self._parts.append((first.float().cpu(), second.float().cpu()))

    def merge(self, other: PairedFeatures) -> None:
        """Take over what another rank has kept, after our own."""
        self._parts += other._parts

    def cknna(self, neighbors: int) -> float:
        """`cknna` over all that is kept.

        Raises:
            ValueError: fewer than 4 images, or not more than `neighbors`.
        """
        empty = torch.empty(0, 1)
        columns = zip(*self._parts, strict=True) if self._parts else ((empty,), (empty,))
        first, second = (torch.cat(column)[: self._limit] for column in columns)
        return cknna(first, second, neighbors=neighbors)


def _nearest(kernel: Tensor, count: int, exclude_self: bool) -> Tensor:
    """1 where column j is among row i's `count` largest, else 0."""
    ranked = kernel.clone()
    if exclude_self:
        ranked.fill_diagonal_(-torch.inf)
    return torch.zeros_like(kernel).scatter(1, ranked.topk(count, dim=1).indices, 1.0)


def _zero_diagonal(kernel: Tensor) -> Tensor:
    return kernel - torch.diag(kernel.diagonal())
