"""Flow matching between noise (t = 0) and data (t = 1) (released dit/transport).

Times are logit-normal in the released training: ``torch.sigmoid`` of standard normal draws.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import override

Prediction = Literal["velocity", "noise", "score"]
Weighting = Literal["none", "velocity", "likelihood"]


class FlowPath(ABC):
    """``x_t = alpha(t) data + sigma(t) noise``; all methods take t broadcastable to x."""

    @abstractmethod
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the data, and its derivative."""

    @abstractmethod
    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the noise, and its derivative."""

    def alpha_rate(self, t: Tensor) -> Tensor:
        """Derivative of log alpha."""
        alpha, change = self.alpha(t)
        return change / alpha

    def interpolate(self, data: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Point on the path and its velocity there.

        Args:
            data, noise: float [B, ...].
            t: [B] in [0, 1].
        """
        t = expand_time(t, data)
        (alpha, alpha_change), (sigma, sigma_change) = self.alpha(t), self.sigma(t)
        return alpha * data + sigma * noise, alpha_change * data + sigma_change * noise

    def score_weight(self, t: Tensor) -> Tensor:
        """Factor w of the score in the velocity ``alpha_rate x + w score``."""
        sigma, change = self.sigma(t)
        return self.alpha_rate(t) * sigma**2 - sigma * change

    def to_velocity(self, output: Tensor, x: Tensor, t: Tensor, prediction: Prediction) -> Tensor:
        """Velocity that a network output stands for; x [B, ...], t [B]."""
        if prediction == "velocity":
            return output
        t = expand_time(t, x)
        score = output if prediction == "score" else -output / self.sigma(t)[0]
        return self.alpha_rate(t) * x + self.score_weight(t) * score

    def to_score(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Score of the noisy distribution at x [B, ...], t [B]; not at t = 1."""
        t = expand_time(t, x)
        return (velocity - self.alpha_rate(t) * x) / self.score_weight(t)

    def to_noise(self, velocity: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Expected noise in x [B, ...] at t [B]."""
        return -self.sigma(expand_time(t, x))[0] * self.to_score(velocity, x, t)


class LinearPath(FlowPath):
    """Straight lines: the released configuration."""

    @override
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, torch.ones_like(t)

    @override
    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 - t, -torch.ones_like(t)


class TrigonometricPath(FlowPath):
    """Constant variance: sine and cosine (GVP)."""

    @override
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return angle.sin(), angle.cos() * (math.pi / 2)

    @override
    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = t * (math.pi / 2)
        return angle.cos(), -angle.sin() * (math.pi / 2)


class VariancePreservingPath(FlowPath):
    """The linear noise schedule of diffusion models, rates 0.1 to 20 (VP)."""

    _LOW, _HIGH = 0.1, 20.0

    @override
    def alpha_rate(self, t: Tensor) -> Tensor:
        return 0.5 * ((1.0 - t) * (self._HIGH - self._LOW) + self._LOW)

    @override
    def alpha(self, t: Tensor) -> tuple[Tensor, Tensor]:
        rest = 1.0 - t
        alpha = torch.exp(-0.25 * rest**2 * (self._HIGH - self._LOW) - 0.5 * rest * self._LOW)
        return alpha, alpha * self.alpha_rate(t)

    @override
    def sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, change = self.alpha(t)
        sigma = (1.0 - alpha**2).sqrt()
        return sigma, -alpha * change / sigma

    @override
    def score_weight(self, t: Tensor) -> Tensor:
        return self.alpha_rate(t)


PATHS: dict[str, type[FlowPath]] = {
    "linear": LinearPath,
    "gvp": TrigonometricPath,
    "vp": VariancePreservingPath,
}


def shift_times(t: Tensor, shift: float) -> Tensor:
    """Map t to s t / (1 + (s - 1) t) for a shift s > 0; 0 is off. The ends stay where they are."""
    return shift * t / (1.0 + (shift - 1.0) * t) if shift > 0 else t


def expand_time(t: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...] to go with [B, ...]."""
    return t.view(-1, *[1] * (like.dim() - 1))


def velocity_error(prediction: Tensor, velocity: Tensor) -> Tensor:
    """Mean squared error of each sample, fp32 [B]; inputs [B, C, h, w]."""
    return (prediction.float() - velocity.float()).square().mean(dim=(1, 2, 3))


def direction_error(prediction: Tensor, velocity: Tensor) -> Tensor:
    """1 - cosine across channels, mean over space of each sample, fp32 [B]."""
    cosine = F.cosine_similarity(prediction.float(), velocity.float(), dim=1)
    return (1.0 - cosine).mean(dim=(1, 2))


def denoising_error(
    path: FlowPath,
    output: Tensor,
    noise: Tensor,
    t: Tensor,
    prediction: Literal["noise", "score"],
    weighting: Weighting = "none",
) -> Tensor:
    """Squared error of each sample for networks that predict noise or score; fp32 [B].

    Args:
        path: gives the score's scale and the weights.
        output, noise: [B, C, h, w].
        t: [B], away from both ends.
        prediction: what `output` is.
        weighting: of Song et al. 2021; ``velocity`` makes it the error of the velocity.
    """
    t = expand_time(t, output)
    sigma = path.sigma(t)[0]
    error = output * sigma + noise if prediction == "score" else output - noise
    factor = torch.ones_like(sigma)
    if weighting == "velocity":
        factor = (path.score_weight(t) / sigma) ** 2
    elif weighting == "likelihood":
        factor = path.score_weight(t) / sigma**2
    return (factor * error.float().square()).mean(dim=(1, 2, 3))
