"""Networks built from their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from data_pipelines.errors import UserError
from ifsq_train.config import (
    DiTConfig,
    FsqConfig,
    LfqConfig,
    LlamaGenConfig,
    QuantizerConfig,
    RepaConfig,
    TokenizerConfig,
    VqConfig,
)
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.models.repa import SIZES as TEACHERS

if TYPE_CHECKING:
    pass


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer a recipe asks for."""
    from ifsq_train.models.quantizers import continuous, fsq, lfq, vq

    if isinstance(config, FsqConfig):
        return fsq.FSQ(
            config.levels,
            alpha=config.slope,
            bound=config.bound,
            cells=config.cells,
            digit_order=config.digit_order,
            groups=config.factorized_channels,
            track_statistics=True,
        )
    if isinstance(config, VqConfig) and config.normalized:
        return vq.NormalizedVQ(
            config.codebook_size,
            config.num_channels,
            beta=config.beta,
            entropy_ratio=config.entropy_ratio,
        )
    if isinstance(config, VqConfig):
        return vq.VQ(
            config.codebook_size, config.num_channels, beta=config.beta, loss_form=config.loss_form
        )
    if isinstance(config, LfqConfig):
        return lfq.LFQ(
            config.num_channels,
            entropy_weight=config.entropy_weight,
            commitment_weight=config.commitment_weight,
            groups=config.factorized_channels,
        )
    return continuous.Continuous(
        config.num_channels, deterministic=config.kind == "ae", kl_weight=config.kl_weight
    )


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """Autoencoder with its quantizer, default initialisation."""
    return Tokenizer(
        build_quantizer(config.quantizer),
        channel_multipliers=config.channel_multipliers,
        base_channels=config.base_channels,
        num_res_blocks=config.num_res_blocks,
        z_channels=config.z_channels,
        norm_groups=config.norm_groups,
        attention=config.attention,
        double_z=config.double_z,
    )


def build_llamagen(
    config: LlamaGenConfig,
    codebook_sizes: tuple[int, ...],
    grid: tuple[int, int],
    repa: RepaConfig | None = None,
) -> LlamaGen:
    """LlamaGen for tokens of the given codebooks on a grid of the given height and width."""
    return LlamaGen(
        **_shape(config, llamagen.SIZES),
        **_projectors(config, repa),
        codebook_sizes=codebook_sizes,
        grid=grid,
        num_classes=config.num_classes,
        token_dropout=config.token_dropout,
        residual_dropout=config.residual_dropout,
        feed_forward_dropout=config.feed_forward_dropout,
        factorized_layers=config.factorized_layers,
    )


def build_dit(
    config: DiTConfig,
    latent_channels: int,
    grid: tuple[int, int],
    repa: RepaConfig | None = None,
) -> DiT:
    """DiT for latents of the given channels, height and width.

    Raises:
        UserError: the latents do not divide into patches.
    """
    if any(side % config.patch_size for side in grid):
        raise UserError(
            f"task.model.patch_size={config.patch_size} does not divide the {grid[0]} x {grid[1]}"
            " latents; use a divisor of both sides"
        )
    return DiT(
        **_shape(config, dit.SIZES),
        **_projectors(config, repa),
        latent_channels=latent_channels,
        grid=grid,
        patch_size=config.patch_size,
        num_classes=config.num_classes,
        qk_norm=config.qk_norm,
        swiglu=config.swiglu,
        rotary=config.rope,
        rms_norm=config.rmsnorm,
    )


def _shape(config: LlamaGenConfig | DiTConfig, sizes: Mapping[str, Any]) -> Any:
    """Layers, heads and width of a named or custom size."""
    if config.size != "custom":
        return sizes[config.size]
    return {name: getattr(config, name) for name in ("num_layers", "num_heads", "dim")}


def _projectors(config: LlamaGenConfig | DiTConfig, repa: RepaConfig | None) -> dict[str, Any]:
    if repa is None:
        return {}
    layers = _shape(config, llamagen.SIZES if isinstance(config, LlamaGenConfig) else dit.SIZES)
    if repa.depth > layers["num_layers"]:
        raise UserError(
            f"task.repa.depth={repa.depth} is beyond the model's {layers['num_layers']} blocks;"
            " the paper aligns a third of the way in"
        )
    return {
        "projection_dims": (repa.classifier_features or TEACHERS[repa.size]["dim"],),
        "projection_depth": repa.depth,
        "projector_width": repa.projector_width,
    }
