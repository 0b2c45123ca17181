"""Networks built from their configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from data_pipelines.errors import UserError
from ifsq_train.config import (
    DiTConfig,
    GeneratorTaskConfig,
    LlamaGenConfig,
    QuantizerConfig,
    RepaConfig,
    TokenizerConfig,
    TokenizerTaskConfig,
)
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.dit import DiT
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Continuous, NormalizedVQ, Quantizer
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.plugins.kinds import GeneratorKind, QuantizerKind
from ifsq_train.plugins.registry import find, names, unknown_kind

_BY_CONFIG: dict[str, type[Quantizer]] = {
    "fsq": FSQ, "ifsq": FSQ, "vq": VQ, "lfq": LFQ, "ae": Continuous, "vae": Continuous,
}  # fmt: skip
_BY_SPEC: dict[str, type[Quantizer]] = {
    "fsq": FSQ, "lfq": LFQ, "vq": VQ, "normalized_vq": NormalizedVQ,
    "ae": Continuous, "vae": Continuous,
}  # fmt: skip


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The quantizer a recipe asks for.

    Raises:
        UserError: no quantizer of this kind is known.
    """
    return quantizer_class(config.kind, _BY_CONFIG).from_config(config)


def quantizer_class(kind: str, shipped: Mapping[str, type[Quantizer]]) -> type[Quantizer]:
    """The class behind a kind, one of this program's or a plug-in's.

    Raises:
        UserError: nobody knows the kind.
    """
    if kind in shipped:
        return shipped[kind]
    found = find("ifsq.quantizers", kind)
    if not isinstance(found, QuantizerKind):
        raise unknown_kind("quantizer", kind, (*shipped, *names("ifsq.quantizers")))
    if not issubclass(found.quantizer, Quantizer):
        raise UserError(
            f"quantizer kind '{kind}': {found.quantizer.__name__} is not a subclass of"
            " ifsq_train.models.quantizers.Quantizer"
        )
    return found.quantizer


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
        image_channels=config.image_channels,
    )


def build_discriminator(task: TokenizerTaskConfig) -> PatchDiscriminator | None:
    """What judges a tokenizer's images, default initialisation; None without such a loss."""
    config = task.adversarial
    if config is None:
        return None
    channels = task.model.image_channels
    return PatchDiscriminator(config.base_channels, config.num_layers, channels)


def quantizer_from_spec(spec: Mapping[str, Any]) -> Quantizer | None:
    """The quantizer a token dataset describes; None where its codebook is learned.

    Raises:
        UserError: nobody knows the kind.
    """
    return quantizer_class(str(spec["kind"]), _BY_SPEC).from_spec(spec)


def build_generator(task: GeneratorTaskConfig, spec: GeneratorSpec) -> nn.Module:
    """The network of a generator's task for what `spec` says, default initialisation.

    Raises:
        UserError: recipe and spec do not fit together, or nobody knows the kind.
    """
    spec = spec.speaking(task.speaks)
    if task.kind == "autoregressive":
        return build_llamagen(task.model, spec.codebook_sizes, spec.grid, task.repa)
    if task.kind == "diffusion":
        return build_dit(task.model, spec.latent_channels, spec.grid, task.repa)
    return generator_kind(task.kind).network(task, spec)


def generator_kind(name: str) -> GeneratorKind:
    """A generator that a plug-in adds.

    Raises:
        UserError: nobody knows the kind, or it is no generator.
    """
    kind = find("ifsq.tasks", name)
    if not isinstance(kind, GeneratorKind):
        known = [other for other in names("ifsq.tasks") if other != name]
        raise unknown_kind("generator", name, ("autoregressive", "diffusion", *known))
    return kind


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
