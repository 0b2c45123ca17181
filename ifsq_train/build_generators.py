"""Generator tasks: the transformer, and the frozen networks its data needs, fitted together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from data_pipelines.tokens.features import FEATURES
from data_pipelines.tokens.format import TokenSpec
from data_pipelines.tokens.latents import LATENT_MEAN, LatentStatistics, LatentSums
from ifsq_train.artifacts import load_tokenizer
from ifsq_train.build import build_dit, build_llamagen
from ifsq_train.checkpoint import write_atomically
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    RepaConfig,
    TrainConfig,
)
from ifsq_train.context import RunContext
from ifsq_train.data import DataFacts, TrainData
from ifsq_train.models.quantizers.base import Quantizer
from ifsq_train.models.quantizers.fsq import FSQ
from ifsq_train.models.quantizers.lfq import LFQ
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, ImageEncoder, LatentInputs, TokenInputs
from ifsq_train.token_encoder import open_teacher

logger = logging.getLogger(__name__)

LATENTS_JSON = "latents.json"
"""In the run folder: mean and standard deviation measured on images when the run began."""


def build_generator_task(
    config: TrainConfig, data: TrainData, context: RunContext, seed: int
) -> AutoregressiveTask | DiffusionTask:
    """LlamaGen or DiT for this data; see `build.build_task`."""
    task = config.task
    assert isinstance(task, AutoregressiveTaskConfig | DiffusionTaskConfig)
    source = open_source(config, data.facts)
    compiled = config.strategy.compile
    if isinstance(task, AutoregressiveTaskConfig):
        if not source.codebook_sizes:
            raise UserError(
                "task 'autoregressive' needs tokens, but this tokenizer's latents are continuous;"
                " use task 'diffusion', or a tokenizer with fsq, ifsq, vq or lfq"
            )
        if task.group_weights and len(task.group_weights) != len(source.codebook_sizes):
            raise UserError(
                f"task.group_weights has {len(task.group_weights)} numbers, the tokens have"
                f" {len(source.codebook_sizes)} groups; give one per group"
            )
        torch.manual_seed(seed)
        model = build_llamagen(task.model, source.codebook_sizes, source.grid, task.repa)
        alignment = build_alignment(task.repa, source.grid, data.facts, compiled=compiled)
        return AutoregressiveTask(task, model, TokenInputs(source.encoder), alignment, source.facts)
    scaling = latent_scaling(config, data, source, context)
    torch.manual_seed(seed)
    generator = build_dit(task.model, source.latent_channels, source.grid, task.repa)
    alignment = build_alignment(task.repa, generator.patches, data.facts, compiled=compiled)
    latents = LatentInputs(scaling, source.grid, encoder=source.encoder, quantizer=source.quantizer)
    return DiffusionTask(task, generator, latents, alignment, source.facts)


@dataclass(frozen=True)
class Source:
    """What a generator's data is made of.

    Attributes:
        codebook_sizes: of the token groups; empty for continuous latents.
        grid: height and width in tokens.
        latent_channels: C.
        fingerprint: of the tokenizer.
        encoder: where images are encoded on the fly.
        quantizer: where latents are made of tokens.
    """

    codebook_sizes: tuple[int, ...]
    grid: tuple[int, int]
    latent_channels: int
    fingerprint: str
    encoder: ImageEncoder | None = None
    quantizer: Quantizer | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For the checkpoint's header."""
        return {"tokenizer_fingerprint": self.fingerprint}


def open_source(config: TrainConfig, facts: DataFacts) -> Source:
    """The tokenizer or the quantizer behind a generator's data.

    Raises:
        UserError: no such tokenizer, or not the one the tokens come from.
    """
    task = config.task
    assert isinstance(task, AutoregressiveTaskConfig | DiffusionTaskConfig)
    if facts.tokens is not None:
        return _token_source(task, facts.tokens, getattr(config.data, "tokenizer", None))
    assert task.tokenizer is not None
    trained = load_tokenizer(task.tokenizer)
    network = trained.network
    cells, rest = divmod(facts.image_size, network.downsample_ratio)
    if rest or not cells:
        raise UserError(
            f"data.view.image_size={facts.image_size} is not a multiple of the tokenizer's"
            f" {network.downsample_ratio} pixels per token; use"
            f" {max(cells, 1) * network.downsample_ratio}"
        )
    return Source(
        tuple(network.quantize.codebook_sizes),
        (cells, cells),
        network.quantize.num_channels,
        trained.fingerprint,
        encoder=ImageEncoder(network, task.tokenizer_precision),
    )


def _token_source(
    task: AutoregressiveTaskConfig | DiffusionTaskConfig,
    spec: TokenSpec,
    data_tokenizer: str | None,
) -> Source:
    sizes, grid = tuple(spec.codebook_sizes), (spec.grid[0], spec.grid[1])
    if isinstance(task, AutoregressiveTaskConfig):
        return Source(sizes, grid, 0, spec.tokenizer_fingerprint)
    if LATENT_MEAN in spec.extra_columns:
        return Source(sizes, grid, spec.latent_channels, spec.tokenizer_fingerprint)
    quantizer = quantizer_of(spec, task.tokenizer or data_tokenizer)
    return Source(
        sizes, grid, spec.latent_channels, spec.tokenizer_fingerprint, quantizer=quantizer
    )


def quantizer_of(spec: TokenSpec, tokenizer: str | None) -> Quantizer:
    """What turns the tokens of a dataset into latents.

    Args:
        spec: of the dataset.
        tokenizer: run folder or checkpoint; only needed for learned codebooks.

    Raises:
        UserError: a learned codebook without a tokenizer, or of another one.
    """
    settings: Mapping[str, Any] = spec.quantizer
    if settings["kind"] == "fsq":
        return FSQ(
            settings["levels"],
            alpha=settings["alpha"],
            bound=settings["bound"],
            cells=settings["cells"],
            digit_order=settings["digit_order"],
            groups=settings["groups"],
        )
    if settings["kind"] == "lfq":
        return LFQ(sum(settings["groups"]), groups=settings["groups"])
    if tokenizer is None:
        raise UserError(
            f"tokens of kind '{settings['kind']}' become latents through a learned codebook; name"
            " data.tokenizer or task.tokenizer"
        )
    trained = load_tokenizer(tokenizer)
    if trained.fingerprint != spec.tokenizer_fingerprint:
        raise UserError(
            f"{tokenizer} is tokenizer {trained.fingerprint[:12]}, the tokens come from"
            f" {spec.tokenizer_fingerprint[:12]}; name that one"
        )
    return trained.network.quantize


def build_alignment(
    repa: RepaConfig | None, grid: tuple[int, int], facts: DataFacts, *, compiled: bool
) -> Alignment | None:
    """REPA for a model with this grid of positions; its loss in one kernel if `compiled`.

    Raises:
        UserError: no such teacher file, or stored features of another teacher or grid.
    """
    if repa is None:
        return None
    if repa.teacher is not None:
        teacher = open_teacher(repa.teacher, repa.size, grid, "task.repa.teacher")
        return Alignment(teacher, repa.weight, repa.precision, compiled=compiled)
    assert facts.tokens is not None
    stored = facts.tokens.extra_columns[FEATURES].shape
    wanted = (grid[0] * grid[1], TEACHERS[repa.size]["dim"])
    if tuple(stored) != wanted:
        raise UserError(
            f"the stored features are {stored[0]} x {stored[1]} per view, the model aligns"
            f" {wanted[0]} positions with {wanted[1]} features of a DINOv2-{repa.size}; precompute"
            " them for this grid and teacher, or name task.repa.teacher"
        )
    return Alignment(None, repa.weight, compiled=compiled)


def latent_scaling(
    config: TrainConfig, data: TrainData, source: Source, context: RunContext
) -> LatentStatistics:
    """Mean and standard deviation the flow's latents are scaled with, per channel.

    In this order: what the recipe says, what the token dataset says, what was measured when this
    run began, a measurement. The multiplier is part of the standard deviation.

    Raises:
        UserError: another number of channels than the latents have.
    """
    assert isinstance(config.task, DiffusionTaskConfig)
    settings = config.task.latents
    if settings.mean is not None and settings.std is not None:
        if len(settings.mean) != source.latent_channels:
            raise UserError(
                f"task.latents.mean and std have {len(settings.mean)} numbers, the latents have"
                f" {source.latent_channels} channels; give one per channel"
            )
        statistics = LatentStatistics(settings.mean, settings.std, 0)
    elif data.facts.tokens is not None and data.facts.tokens.latent_statistics is not None:
        statistics = data.facts.tokens.latent_statistics
    else:
        statistics = _shared_measurement(config, data, source, context)
    std = tuple(value / settings.multiplier for value in statistics.std)
    return LatentStatistics(statistics.mean, std, statistics.count)


def _shared_measurement(
    config: TrainConfig, data: TrainData, source: Source, context: RunContext
) -> LatentStatistics:
    """Rank 0 reads or measures, the others get the same numbers."""
    channels = source.latent_channels
    numbers = torch.zeros(2 * channels + 1, dtype=torch.float64)
    if context.rank == 0:
        found = _read_or_measure(config, data, source, context)
        numbers = torch.tensor([*found.mean, *found.std, found.count], dtype=torch.float64)
    if dist.is_initialized() and dist.get_world_size() > 1:
        numbers = numbers.to(context.device)
        dist.broadcast(numbers, src=0)
    values = numbers.tolist()
    return LatentStatistics(
        tuple(values[:channels]), tuple(values[channels : 2 * channels]), int(values[-1])
    )


def _read_or_measure(
    config: TrainConfig, data: TrainData, source: Source, context: RunContext
) -> LatentStatistics:
    path = Path(config.output).absolute() / LATENTS_JSON
    if path.is_file():
        stored = json.loads(path.read_bytes())
        if stored["tokenizer_fingerprint"] == source.fingerprint:
            return LatentStatistics(
                tuple(stored["mean"]), tuple(stored["std"]), int(stored["count"])
            )
    assert source.encoder is not None
    assert isinstance(config.task, DiffusionTaskConfig)
    source.encoder.network.to(context.device)
    sums: list[LatentSums] = []
    wanted = config.task.latents.measure_images
    share = max(1, data.plan.global_batch_size // 16)
    for step in range(-(-wanted // data.plan.global_batch_size)):
        batch = data.load(step, 0, 1)
        for images in batch.inputs.split(share):
            latents = source.encoder(images.to(context.device)).latents.double()
            sums.append(
                LatentSums(
                    latents[:, 0].numel(),
                    tuple(latents.sum((0, 2, 3)).tolist()),
                    tuple(latents.square().sum((0, 2, 3)).tolist()),
                )
            )
    statistics = LatentSums.combine(sums)
    assert statistics is not None
    found = {
        "tokenizer_fingerprint": source.fingerprint,
        "mean": list(statistics.mean),
        "std": list(statistics.std),
        "count": statistics.count,
    }
    write_atomically(path, (json.dumps(found, indent=1) + "\n").encode())
    logger.info("latents measured on %d images: std %s", wanted, [f"{s:.4f}" for s in found["std"]])
    return statistics
