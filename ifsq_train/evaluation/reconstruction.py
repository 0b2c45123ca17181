"""How close reconstructions are to their images: PSNR, SSIM, mean absolute difference.

The released evaluation averages batch means and measures unclamped values. Here every image counts
once, whatever the batches, and each measure is also taken on what a viewer would see: clamped
values rounded to 8 bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

SsimWindow = Literal["uniform", "gaussian"]

_K1, _K2 = 0.01, 0.03
_UNIFORM_SIZE = 7
_GAUSSIAN_SIGMA, _GAUSSIAN_RADIUS = 1.5, 5


def psnr(reference: Tensor, other: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB; infinite where the two are equal.

    Args:
        reference, other: float [B, C, H, W].
        data_range: largest possible difference of two values.

    Returns:
        float64 [B].
    """
    error = (reference.double() - other.double()).square().mean(dim=(1, 2, 3))
    return 10.0 * (data_range**2 / error).log10()


def ssim(
    reference: Tensor, other: Tensor, *, data_range: float = 1.0, window: SsimWindow = "uniform"
) -> Tensor:
    """Structural similarity of each image, mean over channels (Wang et al. 2004).

    Equal to scikit-image's `structural_similarity` with its defaults (``uniform``: 7x7 mean,
    sample covariance; the released evaluation) or with ``gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False`` (``gaussian``: the publication). The border that a window would
    leave is not counted.

    Args:
        reference, other: float [B, C, H, W].
        data_range: largest possible difference of two values.
        window: which weights.

    Returns:
        float64 [B].

    Raises:
        ValueError: images smaller than the window.
    """
    x, y = reference.double(), other.double()
    size = _UNIFORM_SIZE if window == "uniform" else 2 * _GAUSSIAN_RADIUS + 1
    if min(x.shape[-2:]) < size:
        found = f"{x.shape[-2]}x{x.shape[-1]}"
        raise ValueError(f"SSIM needs images of at least {size}x{size} pixels, found {found}")
    mean_x, mean_y = _window_mean(x, window), _window_mean(y, window)
    sample = size**2 / (size**2 - 1) if window == "uniform" else 1.0
    var_x = sample * (_window_mean(x * x, window) - mean_x * mean_x)
    var_y = sample * (_window_mean(y * y, window) - mean_y * mean_y)
    covariance = sample * (_window_mean(x * y, window) - mean_x * mean_y)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def _window_mean(x: Tensor, window: SsimWindow) -> Tensor:
    """Weighted mean of every window that lies inside the image."""
    if window == "uniform":
        return F.avg_pool2d(x, _UNIFORM_SIZE, stride=1)
    offsets = torch.arange(-_GAUSSIAN_RADIUS, _GAUSSIAN_RADIUS + 1, dtype=x.dtype, device=x.device)
    weights = torch.exp(-0.5 * (offsets / _GAUSSIAN_SIGMA) ** 2)
    weights = weights / weights.sum()
    planes = x.flatten(0, 1).unsqueeze(1)
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return planes.squeeze(1).unflatten(0, x.shape[:2])


def round_to_8_bit(images: Tensor) -> Tensor:
    """Float in [-1, 1] to the nearest of 256 evenly spaced values in [0, 1], clamped; float32."""
    return images.float().mul(127.5).add(127.5).round().clamp(0.0, 255.0) / 255.0


class ReconstructionMeter:
    """Means over all images seen so far.

    Args:
        perceptual: optional distance of two image batches in [-1, 1], one value or map per
            image, such as a loaded LPIPS network; reported as ``lpips``.
    """

    def __init__(self, perceptual: Callable[[Tensor, Tensor], Tensor] | None = None) -> None:
        self._perceptual = perceptual
        self._sums: dict[str, float] = {}
        self.num_images = 0

    @torch.no_grad()
    def add(self, images: Tensor, reconstructions: Tensor) -> None:
        """Count a batch; both float [B, 3, H, W], nominally in [-1, 1]; B may be 0."""
        if len(images) == 0:
            return
        images, reconstructions = images.detach().float(), reconstructions.detach().float()
        forms = {
            "": ((images + 1.0) / 2.0, (reconstructions + 1.0) / 2.0),
            "_8bit": (round_to_8_bit(images), round_to_8_bit(reconstructions)),
        }
        values = {"l1": (images - reconstructions).abs().double().mean(dim=(1, 2, 3))}
        for suffix, (reference, other) in forms.items():
            values[f"psnr_db{suffix}"] = psnr(reference, other)
            values[f"ssim{suffix}"] = ssim(reference, other)
            if min(images.shape[-2:]) >= 2 * _GAUSSIAN_RADIUS + 1:
                values[f"ssim_gaussian{suffix}"] = ssim(reference, other, window="gaussian")
            if self._perceptual is not None:
                distances = self._perceptual(2.0 * reference - 1.0, 2.0 * other - 1.0).double()
                values[f"lpips{suffix}"] = distances.reshape(len(images), -1).mean(1)
        for name, per_image in values.items():
            assert per_image.shape == (len(images),)
            self._sums[name] = self._sums.get(name, 0.0) + float(per_image.sum())
        self.num_images += len(images)

    def __getstate__(self) -> dict[str, Any]:
        """Sent between ranks without the network."""
        return {**vars(self), "_perceptual": None}

    def merge(self, other: ReconstructionMeter) -> None:
        """Take over what another meter has counted, such as another rank's."""
        for name, value in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self.num_images += other.num_images

    def results(self) -> dict[str, float]:
        """Mean over images by name: ``psnr_db``, ``ssim`` (uniform window), ``ssim_gaussian`` and
        ``lpips`` if asked for, each also with ``_8bit`` after clamping and rounding; ``l1``
        (difference in [-1, 1] units); and the count ``num_images``. Images too small for the
        Gaussian window of 11 pixels have no ``ssim_gaussian``.

        Raises:
            ValueError: nothing was counted.
        """
        if self.num_images == 0:
            raise ValueError("no image was measured; give the evaluation at least one")
        means = {name: value / self.num_images for name, value in self._sums.items()}
        return means | {"num_images": self.num_images}
