"""No quantization: a deterministic bottleneck (AE) or a diagonal Gaussian one (VAE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ifsq_train.models.quantizers.base import Quantizer, QuantizerOutput


class Continuous(Quantizer):
    """Posterior of 2C channels: mean, then log-variance clamped to [-30, 20].

    Args:
        num_channels: C.
        deterministic: True is the paper's AE: the mean, no noise, no KL.
        kl_weight: weight of the KL divergence to N(0, 1), summed over C, H, W, mean over B.
    """

    codebook_sizes = ()

    def __init__(
        self, num_channels: int, *, deterministic: bool = True, kl_weight: float = 0.0
    ) -> None:
        super().__init__()
        self.num_channels, self.deterministic = num_channels, deterministic
        self.kl_weight, self.has_posterior = kl_weight, not deterministic

    @classmethod
    def from_config(cls, config: Any) -> Continuous:
        """See Quantizer.from_config; kind ``ae`` is deterministic."""
        return cls(
            config.num_channels, deterministic=config.kind == "ae", kl_weight=config.kl_weight
        )

    @property
    def moment_channels(self) -> int:
        """Mean and log-variance."""
        return 2 * self.num_channels

    @override
    def posterior(self, moments: Tensor) -> tuple[Tensor, Tensor | None]:
        mean, log_variance = split_moments(moments)
        return mean, None if self.deterministic else log_variance

    def forward(self, latents: Tensor, noise: Tensor | None = None) -> QuantizerOutput:
        """Mean, or a sample in training mode of a VAE.

        Args:
            latents: moments float [B, 2C, H, W].
            noise: standard normal [B, C, H, W]; torch's global generator when not given.
        """
        with torch.autocast(latents.device.type, enabled=False):
            mean, log_variance = split_moments(latents)
            indices = torch.empty(
                (mean.shape[0], *mean.shape[2:], 0), dtype=torch.int64, device=mean.device
            )
            if self.deterministic:
                return QuantizerOutput(mean, indices)
            kl = kl_divergence(mean, log_variance).mean()
            sample = mean
            if self.training or noise is not None:
                noise = torch.randn_like(mean) if noise is None else noise
                sample = mean + (0.5 * log_variance).exp() * noise
            return QuantizerOutput(sample, indices, {"kl": self.kl_weight * kl})

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        """Not possible: there are no tokens.

        Raises:
            ValueError: always.
        """
        del indices
        raise ValueError("a continuous bottleneck (ae, vae) has no tokens to decode")

    @override
    def spec(self) -> dict[str, Any]:
        return {"kind": "ae" if self.deterministic else "vae", "num_channels": self.num_channels}


def split_moments(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and clamped log-variance, fp32 [B, C, H, W] each, of moments [B, 2C, H, W]."""
    mean, log_variance = moments.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30.0, 20.0)


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) to N(0, 1), summed over C, H, W; fp32 [B]."""
    terms = mean.square() + log_variance.exp() - 1.0 - log_variance
    return 0.5 * terms.sum(dim=(1, 2, 3))
