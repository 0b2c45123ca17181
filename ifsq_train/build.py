"""From recipe parts to networks and tasks; imports torch, so only where something is trained."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from data_pipelines.errors import UserError
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    FsqConfig,
    LfqConfig,
    LlamaGenConfig,
    QuantizerConfig,
    StrategyConfig,
    TaskConfig,
    TokenizerConfig,
    TokenizerTaskConfig,
    VqConfig,
)
from ifsq_train.context import RunContext
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.llamagen import SIZES, LlamaGen, Shape
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.randomness import derive_seed
from ifsq_train.strategy.base import Strategy
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import TrainTask
from ifsq_train.tasks.tokenizer_gan import TokenizerTask

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
    config: LlamaGenConfig, codebook_sizes: tuple[int, ...], grid: tuple[int, int]
) -> LlamaGen:
    """LlamaGen for tokens of the given codebooks on a grid of the given height and width."""
    shape = _llamagen_shape(config)
    return LlamaGen(
        **shape,
        codebook_sizes=codebook_sizes,
        grid=grid,
        num_classes=config.num_classes,
        token_dropout=config.token_dropout,
        residual_dropout=config.residual_dropout,
        feed_forward_dropout=config.feed_forward_dropout,
        factorized_layers=config.factorized_layers,
    )


def _llamagen_shape(config: LlamaGenConfig) -> Shape:
    if config.size != "custom":
        return SIZES[config.size]
    assert config.num_layers is not None
    assert config.num_heads is not None
    assert config.dim is not None
    return Shape(num_layers=config.num_layers, num_heads=config.num_heads, dim=config.dim)


def build_task(
    config: TaskConfig,
    seed: int,
    codebook_sizes: tuple[int, ...] | None = None,
    grid: tuple[int, int] | None = None,
) -> TrainTask:
    """The task with freshly initialised networks, equal on every rank.

    Args:
        config: the recipe's task.
        seed: seeds the initialisation.
        codebook_sizes, grid: of the token dataset; generators need them.
    """
    torch.manual_seed(derive_seed(seed, "initialisation"))
    if isinstance(config, TokenizerTaskConfig):
        return _build_tokenizer_task(config)
    assert isinstance(config, AutoregressiveTaskConfig)
    assert codebook_sizes is not None
    assert grid is not None
    return AutoregressiveTask(config, build_llamagen(config.model, codebook_sizes, grid))


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


def build_strategy(config: StrategyConfig, context: RunContext) -> Strategy:
    """The engine a recipe asks for; deepspeed is imported only when it is."""
    if config.kind == "torch":
        from ifsq_train.strategy.torch import TorchStrategy

        return TorchStrategy(config, context)
    from ifsq_train.strategy.deepspeed import DeepSpeedStrategy

    return DeepSpeedStrategy(config, context)
