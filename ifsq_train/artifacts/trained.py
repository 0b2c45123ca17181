"""Trained networks, opened for use from a run folder, a checkpoint or a folder of `ifsq export`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data_pipelines.errors import DataError, UserError
from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.artifacts.networks import build_generator, build_tokenizer
from ifsq_train.artifacts.pretrained import Pretrained, open_pretrained
from ifsq_train.checkpoint.averages import NOTED_SHARE, initial_share
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
from ifsq_train.models.channels import as_rgb
from ifsq_train.models.fingerprint import update_with_tensors
from ifsq_train.models.generator_spec import GeneratorSpec

Weights = Literal["averaged", "live"]

logger = logging.getLogger(__name__)

_MENTIONED: set[str] = set()
"""Checkpoints whose averages have been warned of."""


@dataclass(frozen=True)
class TrainedTokenizer:
    """A tokenizer in eval mode with the weights that are used after training.

    Attributes:
        network: float32, on the CPU.
        config: its architecture.
        fingerprint: sha256 over weights and configuration; tokens carry it.
        step: optimizer steps of the run it comes from.
        weights: ``averaged`` or ``live``.
    """

    network: Tokenizer
    config: TokenizerConfig
    fingerprint: str
    step: int
    weights: str = "averaged"


@dataclass(frozen=True)
class TrainedGenerator:
    """A generator in eval mode, and which tokens or latents it speaks.

    Attributes:
        network: float32, on the CPU.
        task: its part of the recipe it was trained with.
        spec: what it speaks.
        step: optimizer steps of the run it comes from.
        fingerprint: sha256 over weights, shape and scaling.
        weights: ``averaged`` or ``live``.
        classes: those that its data had; None where that is not known.
    """

    network: nn.Module
    task: GeneratorTaskConfig
    spec: GeneratorSpec
    step: int
    fingerprint: str
    weights: str = "averaged"
    classes: tuple[int, ...] | None = None

    @property
    def num_classes(self) -> int:
        """Real classes."""
        return self.task.model.num_classes

    @property
    def scaling(self) -> LatentStatistics | None:
        """`denormalize` turns what it makes into latents; None for generators of tokens."""
        mean, std = self.spec.latent_mean, self.spec.latent_std
        return None if mean is None or std is None else LatentStatistics(mean, std, 0)


def load_tokenizer(path: str | Path, weights: Weights = "averaged") -> TrainedTokenizer:
    """Open a tokenizer.

    Args:
        path: run folder, checkpoint, or folder of `ifsq export --layout hf`.
        weights: the averaged ones, which are the live ones where none were kept, or the live ones.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a tokenizer.
    """
    if (found := open_pretrained(Path(path))) is not None:
        return _pretrained_tokenizer(found, weights)
    checkpoint = open_checkpoint(path)
    task = _recipe(checkpoint).task
    if not isinstance(task, TokenizerTaskConfig):
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of a '{task.kind}' run; a tokenizer's is needed"
        )
    network = build_tokenizer(task.model)
    assert isinstance(network, Tokenizer)
    used = load_weights(checkpoint, AUTOENCODER, network, weights)
    return TrainedTokenizer(network, task.model, network.fingerprint(), checkpoint.step, used)


def _pretrained_tokenizer(found: Pretrained, weights: Weights) -> TrainedTokenizer:
    found.refuse_other_weights(weights)
    config = found.tokenizer()
    network = build_tokenizer(config)
    found.fill(network)
    found.check(fingerprint := network.fingerprint())
    return TrainedTokenizer(network, config, fingerprint, found.step, found.weights)


def tokenizer_fingerprint(path: str | Path) -> str:
    """Identity of the tokenizer at `path`; see `load_tokenizer`."""
    return load_tokenizer(path).fingerprint


def load_tokenizer_of(path: str | Path, fingerprint: str) -> TrainedTokenizer:
    """The tokenizer at `path` with those of its weights that have a fingerprint, if any have;
    else the averaged ones, whose fingerprint the caller then finds to be another."""
    averaged = load_tokenizer(path)
    if averaged.fingerprint == fingerprint or averaged.weights == "live":
        return averaged
    if open_pretrained(Path(path)) is not None:  # has no others
        return averaged
    live = load_tokenizer(path, "live")
    return live if live.fingerprint == fingerprint else averaged


def load_generator(path: str | Path, weights: Weights = "averaged") -> TrainedGenerator:
    """Open a generator.

    Args:
        path: run folder, checkpoint, or folder of `ifsq export --layout hf`.
        weights: the averaged ones, which are the live ones where none were kept, or the live ones.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a generator.
    """
    if (found := open_pretrained(Path(path))) is not None:
        return _pretrained_generator(found, weights)
    checkpoint = open_checkpoint(path)
    task = _recipe(checkpoint).task
    if not isinstance(task, GeneratorTaskConfig):
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of a '{task.kind}' run; a generator's is needed"
        )
    stored = checkpoint.header["task"]
    spec = _spec_in(stored, checkpoint.folder)
    network = build_generator(task, spec)
    used = load_weights(checkpoint, GENERATOR, network, weights)
    fingerprint = _generator_fingerprint(network, stored)
    classes = checkpoint.header.get("classes")
    known = None if classes is None else tuple(classes)
    return TrainedGenerator(network, task, spec, checkpoint.step, fingerprint, used, known)


def _spec_in(stored: Mapping[str, Any], folder: Path) -> GeneratorSpec:
    try:
        return GeneratorSpec.from_dict(stored)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{folder} does not say what the generator speaks ({error!r}); export or train it again"
        ) from error


def _pretrained_generator(found: Pretrained, weights: Weights) -> TrainedGenerator:
    found.refuse_other_weights(weights)
    task, stored = found.generator()
    spec = _spec_in(stored, found.folder)
    network = build_generator(task, spec)
    found.fill(network)
    found.check(fingerprint := _generator_fingerprint(network, stored))
    classes = found.facts.get("classes")
    known = None if classes is None else tuple(classes)
    return TrainedGenerator(network, task, spec, found.step, fingerprint, found.weights, known)


def _generator_fingerprint(network: nn.Module, stored: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(stored, sort_keys=True).encode())
    update_with_tensors(digest, dict(network.named_parameters()))
    return digest.hexdigest()


def load_weights(
    checkpoint: Checkpoint, name: str, network: nn.Module, wanted: Weights = "averaged"
) -> Weights:
    """Fill a network from a checkpoint and put it into eval mode.

    Args:
        checkpoint: opened.
        name: of the network in it.
        network: of the same architecture.
        wanted: averaged weights and buffers, if the checkpoint has them, or the live ones.

    Returns:
        Which ones it got.
    """
    averaged = wanted == "averaged" and checkpoint.has_average(name)
    weights = checkpoint.weights(name, "ema" if averaged else "master")
    buffers = checkpoint.buffers(f"live/{name}")
    if averaged:
        buffers |= checkpoint.buffers(f"ema/{name}")
        _mention_initial_weights(checkpoint, name)
    network.load_state_dict(weights | buffers, strict=True)
    network.eval().requires_grad_(False)
    return "averaged" if averaged else "live"


def _mention_initial_weights(checkpoint: Checkpoint, name: str) -> None:
    """Warn, once, where an average is still near the weights the run began with."""
    recipe, updates = checkpoint.header["recipe"], checkpoint.header.get("optimizer_steps") or {}
    if name not in updates or recipe.get("ema_decay") is None:
        return
    share = initial_share(recipe["ema_decay"], recipe.get("ema_warmup", False), updates[name])
    if share > NOTED_SHARE and str(checkpoint.folder) not in _MENTIONED:
        _MENTIONED.add(str(checkpoint.folder))
        logger.warning(
            "%s: %.1f %% of the averaged weights are those the run began with; use weights: live,"
            " a smaller ema_decay, or train longer",
            checkpoint.folder,
            100 * share,
        )


def _recipe(checkpoint: Checkpoint) -> TrainConfig:
    recipe = validate_recipe(checkpoint.header["recipe"], source=str(checkpoint.folder))
    assert isinstance(recipe, TrainConfig)
    return recipe


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """Pictures uint8 [N, H, W, 3] of images float [N, 3, H, W] in [-1, 1], or of grey ones."""
    return as_rgb(to_uint8(images.float())).permute(0, 2, 3, 1).cpu().numpy()


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 of the same shape from float in [-1, 1]; rounded to nearest, clamped."""
    return images.mul(127.5).add(127.5).round().clamp(0, 255).to(torch.uint8)
