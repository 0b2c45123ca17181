"""From recipe parts to networks and tasks; imports torch, so only where something is trained."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from data_pipelines.errors import UserError
from ifsq_train.artifacts.classifiers import build_classifier
from ifsq_train.artifacts.networks import build_discriminator, build_tokenizer
from ifsq_train.assembly.generator import build_generator_task
from ifsq_train.config import GeneratorTaskConfig, TokenizerTaskConfig, TrainConfig
from ifsq_train.config.classifier import ClassifierTaskConfig
from ifsq_train.data.base import TrainData
from ifsq_train.distributed.context import RunContext
from ifsq_train.models.perceptual import load_lpips
from ifsq_train.plugins.kinds import TaskKind
from ifsq_train.plugins.registry import find, unknown_kind
from ifsq_train.randomness import derive_seed
from ifsq_train.tasks.base import TrainTask
from ifsq_train.tasks.classifier import ClassifierTask
from ifsq_train.tasks.tokenizer_gan import TokenizerTask

logger = logging.getLogger(__name__)


def build_task(config: TrainConfig, data: TrainData, context: RunContext) -> TrainTask:
    """The task with freshly initialised networks, equal on every rank.

    Raises:
        UserError: a file that is missing or of another kind, or parts that do not fit together.
    """
    task = config.task
    seed = derive_seed(config.seed, "initialisation")
    if isinstance(task, GeneratorTaskConfig):
        return build_generator_task(config, task, data, context, seed)
    torch.manual_seed(seed)
    if isinstance(task, TokenizerTaskConfig):
        return _build_tokenizer_task(task)
    if isinstance(task, ClassifierTaskConfig):
        return ClassifierTask(task, build_classifier(task.model))
    kind = find("ifsq.tasks", task.kind)
    if not isinstance(kind, TaskKind):
        raise unknown_kind(
            "task", task.kind, ("tokenizer", "classifier", "autoregressive", "diffusion")
        )
    return kind.task(config, data, context)


def _build_tokenizer_task(config: TokenizerTaskConfig) -> TokenizerTask:
    tokenizer = build_tokenizer(config.model)
    discriminator = build_discriminator(config)
    weights = config.perceptual.weights
    if weights is None:
        logger.info("perceptual loss is off: no weights given (task.perceptual.weights)")
        return TokenizerTask(config, tokenizer, discriminator, None)
    paths = [Path(path) for path in ((weights,) if isinstance(weights, str) else weights)]
    if missing := [path for path in paths if not path.is_file()]:
        raise UserError(
            f"task.perceptual.weights: no file '{missing[0]}';"
            " give local LPIPS weight files or null to turn the term off"
        )
    try:
        perceptual = load_lpips(*paths)
    except ValueError as error:
        raise UserError(f"task.perceptual.weights: {error}") from error
    return TokenizerTask(config, tokenizer, discriminator, perceptual)
