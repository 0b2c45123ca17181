"""Generator tasks: the transformer, and the frozen networks its data needs, fitted together."""

from __future__ import annotations

import logging

import torch

from data_pipelines.errors import UserError
from data_pipelines.tokens.features import FEATURES
from ifsq_train.artifacts.networks import build_dit, build_llamagen
from ifsq_train.artifacts.teachers import open_classifier_teacher, open_teacher
from ifsq_train.assembly.generator_source import open_source
from ifsq_train.assembly.latent_scaling import latent_scaling
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    RepaConfig,
    TrainConfig,
)
from ifsq_train.data.base import DataFacts, TrainData
from ifsq_train.distributed.context import RunContext
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs, TokenInputs

logger = logging.getLogger(__name__)


def build_generator_task(
    config: TrainConfig, data: TrainData, context: RunContext, seed: int
) -> AutoregressiveTask | DiffusionTask:
    """LlamaGen or DiT for this data; see `build.build_task`."""
    task = config.task
    assert isinstance(task, AutoregressiveTaskConfig | DiffusionTaskConfig)
    source = open_source(config, data.facts)
    compiled = config.strategy.compiles_on(context.device.type)
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
        if repa.classifier_features is not None:
            teacher = open_classifier_teacher(repa.teacher, repa.classifier_features, grid)
        else:
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
