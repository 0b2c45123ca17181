"""Recipe parts: what is trained and with what losses."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ifsq_train.config.base import Config
from ifsq_train.config.networks import LlamaGenConfig, TokenizerConfig


class AdversarialConfig(Config):
    """PatchGAN discriminator and its schedule."""

    start_step: int = Field(default=50_000, ge=0)
    weight: float = Field(default=0.5, ge=0)
    """Multiplies the adaptive weight."""
    adaptive_max: float = Field(default=1e6, gt=0)
    loss: Literal["hinge", "vanilla"] = "hinge"
    num_layers: int = Field(default=4, ge=1)
    base_channels: int = Field(default=64, ge=1)
    schedule: Literal["alternate", "both"] = "alternate"
    """`alternate` (released): odd steps train the discriminator only; `both`: each step both."""


class PerceptualConfig(Config):
    """LPIPS term; off unless weights are given."""

    weights: str | None = None
    """Local file with VGG16 backbone and linear heads; the term is off without it."""
    weight: float = Field(default=1.0, ge=0)


class TokenizerTaskConfig(Config):
    """Train an image tokenizer: reconstruction, perceptual and adversarial terms."""

    kind: Literal["tokenizer"]
    model: TokenizerConfig
    pixel_loss: Literal["l1", "l2"] = "l1"
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig | None = AdversarialConfig()
    codebook_weight: float = Field(default=1.0, ge=0)
    """Weight of the quantizer's own loss (VQ, LFQ)."""


class AutoregressiveTaskConfig(Config):
    """Train LlamaGen on image tokens."""

    kind: Literal["autoregressive"]
    model: LlamaGenConfig
    group_weights: tuple[float, ...] | None = None
    """Weights of the groups' cross-entropies for factorized tokens; 1 each when not given."""


TaskConfig = Annotated[TokenizerTaskConfig | AutoregressiveTaskConfig, Field(discriminator="kind")]
