"""Generator tasks: the network, and the frozen networks its data needs, fitted together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from data_pipelines.errors import UserError
from data_pipelines.tokens.features import FEATURES
from ifsq_train.artifacts.networks import build_generator, generator_kind
from ifsq_train.artifacts.teachers import open_classifier_teacher, open_teacher
from ifsq_train.assembly.generator_source import Source, open_source
from ifsq_train.assembly.latent_scaling import latent_scaling
from ifsq_train.config import AutoregressiveTaskConfig, GeneratorTaskConfig, RepaConfig, TrainConfig
from ifsq_train.data.base import DataFacts, TrainData
from ifsq_train.data.labels import check_labels
from ifsq_train.distributed.context import RunContext
from ifsq_train.models.repa import SIZES as TEACHERS
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import TrainTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs, TokenInputs

_TASKS: dict[str, Callable[..., TrainTask]] = {
    "autoregressive": AutoregressiveTask,
    "diffusion": DiffusionTask,
}


def build_generator_task(
    config: TrainConfig,
    task: GeneratorTaskConfig,
    data: TrainData,
    context: RunContext,
    seed: int,
) -> TrainTask:
    """The task of a generator for this data; see `assembly.task.build_task`."""
    num_classes = getattr(task.model, "num_classes", None)
    if num_classes is not None:
        check_labels(data, num_classes)
    source = open_source(config, task, data.facts)
    spec, inputs = source.spec, _token_inputs(task, source)
    if task.speaks == "latents":
        scaling = latent_scaling(config, task.latents, data, source, context)
        spec = spec.scaled(scaling.mean, scaling.std)
        inputs = LatentInputs(
            scaling, spec.grid, encoder=source.encoder, quantizer=source.quantizer
        )
    spec = spec.speaking(task.speaks)
    torch.manual_seed(seed)
    network: Any = build_generator(task, spec)
    positions = getattr(network, "patches", spec.grid)
    compiled = config.strategy.compiles_on(context.device.type)
    alignment = build_alignment(task.repa, positions, data.facts, compiled=compiled)
    make = _TASKS.get(task.kind) or generator_kind(task.kind).task
    return make(task, network, inputs, alignment, spec)


def _token_inputs(task: GeneratorTaskConfig, source: Source) -> TokenInputs | LatentInputs:
    sizes = source.spec.codebook_sizes
    if task.speaks == "tokens" and not sizes:
        raise UserError(
            f"task '{task.kind}' needs tokens, but this tokenizer's latents are continuous;"
            " use task 'diffusion', or a tokenizer with fsq, ifsq, vq or lfq"
        )
    weights = task.group_weights if isinstance(task, AutoregressiveTaskConfig) else None
    if weights and len(weights) != len(sizes):
        raise UserError(
            f"task.group_weights has {len(weights)} numbers, the tokens have {len(sizes)} groups;"
            " give one per group"
        )
    return TokenInputs(source.encoder)


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
