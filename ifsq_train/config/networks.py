"""Recipe parts: quantizers and networks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from ifsq_train.config.base import Config
from ifsq_train.config.kinds import OneOf


class FsqConfig(Config):
    """Finite scalar quantization with the bound 2 sigmoid(alpha z) - 1 (paper section 3)."""

    kind: Literal["fsq", "ifsq"]
    levels: tuple[int, ...] = Field(min_length=1)
    """Levels per latent channel; K bits in the paper are 2**K + 1 levels."""
    alpha: float | None = Field(default=None, gt=0)
    """Slope of the bound; 1.6 for ifsq and 2.0 (exactly tanh) for fsq when not given."""
    bound: Literal["simple", "shifted"] = "simple"
    """`shifted` is FSQ's original bound, which also allows even level counts."""
    cells: Literal["paper", "equal_width"] = "paper"
    """`equal_width` gives the two end levels cells as wide as the others."""
    digit_order: Literal["little", "big"] = "little"
    """Which channel is least significant in a token: the first (released code) or the last."""
    factorized_channels: tuple[int, ...] | None = None
    """Channels per token group; one group of all channels when not given."""
    standardize: bool = False
    """Bring every channel to mean 0 and deviation 1 before the bound (running statistics)."""
    training: Literal["round", "noise"] = "round"
    """`noise`: in training, uniform noise as wide as a cell takes the place of rounding."""

    @field_validator("levels")
    @classmethod
    def _levels_at_least_two(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if min(levels) < 2:
            raise ValueError(f"every entry must be at least 2, found {list(levels)}")
        return levels

    @model_validator(mode="after")
    def _consistent(self) -> FsqConfig:
        if self.bound == "simple" and any(level % 2 == 0 for level in self.levels):
            raise ValueError(
                f"bound 'simple' needs odd levels, found {list(self.levels)};"
                " use 2**K + 1 levels or bound: shifted"
            )
        groups = self.factorized_channels
        if groups is not None and (sum(groups) != len(self.levels) or min(groups) < 1):
            raise ValueError(
                f"factorized_channels {list(groups)} must be positive and sum to the"
                f" {len(self.levels)} channels of levels"
            )
        return self

    @property
    def slope(self) -> float:
        """Alpha with the default of the kind filled in."""
        return self.alpha if self.alpha is not None else (1.6 if self.kind == "ifsq" else 2.0)

    @property
    def num_channels(self) -> int:
        """Latent channels the quantizer works on."""
        return len(self.levels)


class VqConfig(Config):
    """Vector quantization with a learned codebook."""

    kind: Literal["vq"]
    codebook_size: int = Field(default=16384, ge=2)
    num_channels: int = Field(default=4, ge=1)
    beta: float = Field(default=0.5, ge=0)
    loss_form: Literal["released", "vqvae"] = "released"
    """`released` weighs the codebook term by beta, `vqvae` the commitment term."""
    normalized: bool = False
    """Latents and entries of unit length, beta on the commitment term (LlamaGen: 8 channels,
    beta 0.25); loss_form is then not used."""
    entropy_ratio: float = Field(default=0.0, ge=0)
    """Weight of the entropy term of a normalized codebook."""

    @model_validator(mode="after")
    def _entropy_only_where_it_is(self) -> VqConfig:
        if self.entropy_ratio and not self.normalized:
            raise ValueError("entropy_ratio needs normalized: true; set it to 0 or normalize")
        return self


class LfqConfig(Config):
    """Lookup-free quantization: one bit per channel."""

    kind: Literal["lfq"]
    num_channels: int = Field(default=14, ge=1, le=62)
    entropy_weight: float = Field(default=0.1, ge=0)
    """Weight of the entropy term at the end of its annealing."""
    commitment_weight: float = Field(default=0.25, ge=0)
    factorized_channels: tuple[int, ...] | None = None
    """Bits per token group; one group of all bits when not given."""
    entropy_extra: float = Field(default=3.0, ge=0)
    """The entropy term starts at 1 + this times its weight and falls linearly."""
    entropy_anneal_steps: int = Field(default=2000, ge=1)

    @model_validator(mode="after")
    def _groups_sum(self) -> LfqConfig:
        groups = self.factorized_channels
        if groups is not None and (sum(groups) != self.num_channels or min(groups) < 1):
            raise ValueError(
                f"factorized_channels {list(groups)} must be positive and sum to num_channels"
                f" {self.num_channels}"
            )
        if self.entropy_weight and max(groups or (self.num_channels,)) > 18:
            raise ValueError(
                "the entropy term takes groups of at most 18 bits;"
                " give factorized_channels or entropy_weight: 0"
            )
        return self


class ContinuousConfig(Config):
    """No quantizer: a deterministic (ae) or Gaussian (vae) bottleneck."""

    kind: Literal["ae", "vae"]
    num_channels: int = Field(default=4, ge=1)
    kl_weight: float = Field(default=0.0, ge=0)


QuantizerConfig = Annotated[
    FsqConfig | VqConfig | LfqConfig | ContinuousConfig, OneOf("ifsq.quantizers")
]


class TokenizerConfig(Config):
    """Convolutional autoencoder with a quantizer in the middle."""

    quantizer: QuantizerConfig
    channel_multipliers: tuple[int, ...] = Field(default=(1, 1, 2, 4, 4), min_length=1)
    """Width of each level over base_channels; one downsampling between levels (f16: five)."""
    base_channels: int = Field(default=128, ge=1)
    num_res_blocks: int = Field(default=2, ge=1)
    """Residual blocks per encoder level; the decoder has one more."""
    z_channels: int = Field(default=4, ge=1)
    """Channels between the encoder and the 1x1 convolution before the quantizer."""
    norm_groups: int = Field(default=32, ge=1)
    attention: bool = False
    """In the deepest level and the middle, as in LlamaGen's public VQ tokenizers."""
    double_z: bool = True
    """The encoder ends in 2 * z_channels (paper) or, as LlamaGen's, in z_channels."""
    image_channels: Literal[1, 3] = 3
    """3 for RGB; 1: the luminance of images is encoded, grey images are decoded."""

    @property
    def downsample_ratio(self) -> int:
        """Pixels per latent cell and side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    @model_validator(mode="after")
    def _groups_divide(self) -> TokenizerConfig:
        widths = [self.base_channels * m for m in self.channel_multipliers]
        if bad := [w for w in widths if w % self.norm_groups]:
            raise ValueError(
                f"norm_groups={self.norm_groups} must divide every width, found {bad};"
                " change base_channels, channel_multipliers or norm_groups"
            )
        return self


class LlamaGenConfig(Config):
    """Decoder-only class-conditional transformer over image tokens."""

    size: Literal["S", "B", "L", "XL", "XXL", "XXXL", "custom"] = "custom"
    num_layers: int | None = Field(default=None, ge=1, le=10_000)
    num_heads: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=8)
    num_classes: int = Field(default=1000, ge=1)
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """Chance of training a sample on the null class, for guidance."""
    token_dropout: float = Field(default=0.1, ge=0, lt=1)
    residual_dropout: float = Field(default=0.1, ge=0, lt=1)
    feed_forward_dropout: float = Field(default=0.1, ge=0, lt=1)
    factorized_layers: int = Field(default=2, ge=1)
    """Blocks of the small head that predicts the groups of one position."""

    @model_validator(mode="after")
    def _custom_is_complete(self) -> LlamaGenConfig:
        _check_shape(self.size, self.num_layers, self.num_heads, self.dim)
        return self


class DiTConfig(Config):
    """Class-conditional diffusion transformer over latents."""

    size: Literal["S", "B", "L", "XL", "1p0B", "1p6B", "custom"] = "custom"
    num_layers: int | None = Field(default=None, ge=1, le=10_000)
    num_heads: int | None = Field(default=None, ge=1)
    dim: int | None = Field(default=None, ge=8)
    patch_size: int = Field(default=1, ge=1)
    """Side of a patch in latent cells: DiT-L/2 has 2."""
    num_classes: int = Field(default=1000, ge=1)
    class_dropout: float = Field(default=0.1, ge=0, le=1)
    """Chance of training a sample on the null class, for guidance."""
    qk_norm: bool = True
    swiglu: bool = True
    rope: bool = True
    rmsnorm: bool = True

    @model_validator(mode="after")
    def _custom_is_complete(self) -> DiTConfig:
        _check_shape(self.size, self.num_layers, self.num_heads, self.dim)
        return self


def _check_shape(size: str, num_layers: int | None, num_heads: int | None, dim: int | None) -> None:
    """A transformer's shape comes from its size or from all three numbers."""
    shape = (num_layers, num_heads, dim)
    if size == "custom" and None in shape:
        raise ValueError("size 'custom' needs num_layers, num_heads and dim; or name a size")
    if size != "custom" and shape != (None, None, None):
        raise ValueError(
            f"size '{size}' fixes num_layers, num_heads and dim; drop them or use size: custom"
        )
    if dim and num_heads and (dim % num_heads or (dim // num_heads) % 4):
        raise ValueError(f"dim / num_heads must be a multiple of 4, found {dim} / {num_heads}")
