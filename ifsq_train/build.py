"""From recipe parts to networks and tasks; imports torch, so only where something is trained."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_pipelines.errors import UserError
from ifsq_train.config import (
    DiTConfig,
    FsqConfig,
    LfqConfig,
    LlamaGenConfig,
    QuantizerConfig,
    RepaConfig,
    StrategyConfig,
    TokenizerConfig,
    TokenizerTaskConfig,
    TrainConfig,
    VqConfig,
)
from ifsq_train.context import RunContext
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.randomness import derive_seed
from ifsq_train.strategy.base import Strategy
from ifsq_train.tasks.base import TrainTask
from ifsq_train.tasks.tokenizer_gan import TokenizerTask

if TYPE_CHECKING:
    from ifsq_train.data import TrainData

logger = logging.getLogger(__name__)


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
        "projection_dims": (TEACHERS[repa.size]["dim"],),
        "projection_depth": repa.depth,
        "projector_width": repa.projector_width,
    }


def build_task(config: TrainConfig, data: TrainData, context: RunContext) -> TrainTask:
    """The task with freshly initialised networks, equal on every rank.

    Raises:
        UserError: a file that is missing or of another kind, or parts that do not fit together.
    """
    task = config.task
    seed = derive_seed(config.seed, "initialisation")
    if isinstance(task, TokenizerTaskConfig):
        torch.manual_seed(seed)
        return _build_tokenizer_task(task)
    from ifsq_train.build_generators import build_generator_task

    return build_generator_task(config, data, context, seed)


def _build_tokenizer_task(config: TokenizerTaskConfig) -> TokenizerTask:
    from ifsq_train.models.discriminator import PatchDiscriminator
    from ifsq_train.models.perceptual import load_lpips

    tokenizer = build_tokenizer(config.model)
    adversarial = config.adversarial
    discriminator = (
        PatchDiscriminator(adversarial.base_channels, adversarial.num_layers)
        if adversarial is not None
        else None
    )
    weights = config.perceptual.weights
    if weights is None:
        logger.info("perceptual loss is off: no weights given (task.perceptual.weights)")
        return TokenizerTask(config, tokenizer, discriminator, None)
    if not Path(weights).is_file():
        raise UserError(
            f"task.perceptual.weights: no file '{weights}';"
            " give a local LPIPS weight file or null to turn the term off"
        )
    try:
        perceptual = load_lpips(Path(weights))
    except ValueError as error:
        raise UserError(f"task.perceptual.weights: {error}") from error
    return TokenizerTask(config, tokenizer, discriminator, perceptual)


def build_strategy(
    config: StrategyConfig, context: RunContext, *, skip_nonfinite: bool = False
) -> Strategy:
    """The engine a recipe asks for; deepspeed is imported only when it is.

    Args:
        config: the recipe's strategy.
        context: this worker's place.
        skip_nonfinite: an update with a gradient that is not finite must be left out (DeepSpeed
            always does).
    """
    if config.kind == "torch":
        from ifsq_train.strategy.torch import TorchStrategy

        return TorchStrategy(config, context, skip_nonfinite=skip_nonfinite)
    from ifsq_train.strategy.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(config, context)
