"""Binary spherical quantization (Zhao, Xiong and Krähenbühl 2024) as a plug-in of one file.

Latents are projected onto the unit sphere and each channel is rounded to plus or minus one over the
square root of the number of channels: a corner of the cube inside that sphere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from ifsq_train.config import Config
from ifsq_train.models.quantizers import Digits, Quantizer, QuantizerOutput
from ifsq_train.plugins import QuantizerKind


class BsqConfig(Config):
    """Binary spherical quantization: one bit per channel, codes on the unit sphere."""

    kind: Literal["bsq"]
    num_channels: int = Field(default=14, ge=1, le=62)
    commitment_weight: float = Field(default=0.25, ge=0)
    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of (mean entropy of a bit - entropy of the mean bit)."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the soft bits in the entropy term."""


class BSQ(Quantizer):
    """Bit i of an index has weight 2**i; zero counts as negative."""

    def __init__(
        self,
        num_channels: int,
        *,
        commitment_weight: float = 0.25,
        entropy_weight: float = 0.1,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_channels, self.codebook_sizes = num_channels, (2**num_channels,)
        self.commitment_weight, self.entropy_weight = commitment_weight, entropy_weight
        self.temperature, self.corner = temperature, num_channels**-0.5

    @classmethod
    def from_config(cls, config: BsqConfig) -> BSQ:
        return cls(
            config.num_channels,
            commitment_weight=config.commitment_weight,
            entropy_weight=config.entropy_weight,
            temperature=config.temperature,
        )

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> BSQ:
        return cls(spec["num_channels"])

    def spec(self) -> dict[str, Any]:
        return {"kind": "bsq", "num_channels": self.num_channels, "digit_order": "little"}

    def forward(self, latents: Tensor) -> QuantizerOutput:
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=1)
            positive = unit > 0
            codes = torch.where(positive, self.corner, -self.corner)
            places = 2 ** torch.arange(self.num_channels, device=latents.device)
            indices = (positive.permute(0, 2, 3, 1) * places).sum(-1, keepdim=True)
            losses = self._losses(unit, codes) if self.training else {}
            output = codes + (unit - unit.detach())
            return QuantizerOutput(output, indices, losses, self._stats(indices))

    def _losses(self, unit: Tensor, codes: Tensor) -> dict[str, Tensor]:
        bits = (2.0 * unit / self.temperature).sigmoid()
        gap = _bit_entropy(bits).mean() - _bit_entropy(bits.mean((0, 2, 3))).mean()
        return {
            "commitment": self.commitment_weight * F.mse_loss(unit, codes),
            "entropy": self.entropy_weight * gap,
        }

    def indices_to_latents(self, indices: Tensor) -> Tensor:
        bits = (indices >> torch.arange(self.num_channels, device=indices.device)) & 1
        codes = torch.where(bits.bool(), self.corner, -self.corner)
        return codes.permute(0, 3, 1, 2).contiguous()

    def digit_table(self) -> Digits:
        places = tuple(2**bit for bit in range(self.num_channels))
        values = ((-self.corner, self.corner),) * self.num_channels
        return Digits((self.num_channels,), places, values)


def _bit_entropy(ones: Tensor) -> Tensor:
    return F.binary_cross_entropy(ones, ones.detach(), reduction="none")


KIND = QuantizerKind(config=BsqConfig, quantizer=BSQ)
