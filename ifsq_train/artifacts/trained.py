"""Trained networks, opened from a run folder or a checkpoint for use after training."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.artifacts.networks import build_generator, build_tokenizer
from ifsq_train.checkpoint.reader import Checkpoint, open_checkpoint
from ifsq_train.config import (
    GeneratorTaskConfig,
    TokenizerConfig,
    TokenizerTaskConfig,
    TrainConfig,
)
from ifsq_train.config.load import validate_recipe
from ifsq_train.config.tasks import AUTOENCODER, GENERATOR
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.fingerprint import update_with_tensors
from ifsq_train.models.generator_spec import GeneratorSpec


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer in eval mode with the weights that are used after training.

    Attributes:
        network: float32, on the CPU.
        config: its architecture.
        fingerprint: sha256 over weights and configuration; tokens carry it.
        step: optimizer steps of the run it comes from.
    """

    network: Tokenizer
    config: TokenizerConfig
    fingerprint: str
    step: int


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in eval mode, and which tokens or latents it speaks.

    Attributes:
        network: float32, on the CPU.
        task: its part of the recipe it was trained with.
        spec: what it speaks.
        step: optimizer steps of the run it comes from.
        fingerprint: sha256 over weights, shape and scaling.
    """

    network: nn.Module
    task: GeneratorTaskConfig
    spec: GeneratorSpec
    step: int
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Real classes."""
        return self.task.model.num_classes

    @property
    def scaling(self) -> LatentStatistics | None:
        """`denormalize` turns what it makes into latents; None for generators of tokens."""
        mean, std = self.spec.latent_mean, self.spec.latent_std
        return None if mean is None or std is None else LatentStatistics(mean, std, 0)


def load_tokenizer(path: str | Path) -> TrainedTokenizer:
    """Open a tokenizer with its averaged weights, or the live ones if none were kept.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a tokenizer.
    """
    checkpoint = open_checkpoint(path)
    task = _recipe(checkpoint).task
    if not isinstance(task, TokenizerTaskConfig):
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of a '{task.kind}' run; a tokenizer's is needed"
        )
    network = build_tokenizer(task.model)
    assert isinstance(network, Tokenizer)
    load_weights(checkpoint, AUTOENCODER, network)
    return TrainedTokenizer(network, task.model, network.fingerprint(), checkpoint.step)


def tokenizer_fingerprint(path: str | Path) -> str:
    """Identity of the tokenizer at `path`; see `load_tokenizer`."""
    return load_tokenizer(path).fingerprint


def load_generator(path: str | Path) -> TrainedGenerator:
    """Open a generator with its averaged weights, or the live ones if none were kept.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a generator.
    """
    checkpoint = open_checkpoint(path)
    task = _recipe(checkpoint).task
    if not isinstance(task, GeneratorTaskConfig):
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of a '{task.kind}' run; a generator's is needed"
        )
    stored = checkpoint.header["task"]
    spec = GeneratorSpec.from_dict(stored)
    network = build_generator(task, spec)
    load_weights(checkpoint, GENERATOR, network)
    fingerprint = _generator_fingerprint(network, stored)
    return TrainedGenerator(network, task, spec, checkpoint.step, fingerprint)


def _generator_fingerprint(network: nn.Module, stored: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode())
    update_with_tensors(digest, dict(network.named_parameters()))
    return digest.hexdigest()


def load_weights(checkpoint: Checkpoint, name: str, network: nn.Module) -> None:
    """Averaged weights and buffers where the checkpoint has them, else the live ones."""
    averaged = checkpoint.has_average(name)
    weights = checkpoint.weights(name, "ema" if averaged else "master")
    buffers = checkpoint.buffers(f"live/{name}")
    if averaged:
        buffers |= checkpoint.buffers(f"ema/{name}")
    network.load_state_dict(weights | buffers, strict=True)
    network.eval().requires_grad_(False)


def _recipe(checkpoint: Checkpoint) -> TrainConfig:
    recipe = validate_recipe(checkpoint.header["recipe"], source=str(checkpoint.folder))
    assert isinstance(recipe, TrainConfig)
    return recipe


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 of the same shape from float in [-1, 1]; rounded to nearest, clamped."""
    return images.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
