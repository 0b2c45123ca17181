"""Runs of networks that have never been trained: their checkpoints, written directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ifsq_train.artifacts.networks import build_generator, build_tokenizer
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.checkpoint.format import AVERAGE, MASTER, Piece
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import Config, TrainConfig, to_dict
from ifsq_train.models.generator_spec import GeneratorSpec

TOKENIZER = {
    "channel_multipliers": [1, 2],
    "base_channels": 8,
    "norm_groups": 4,
    "quantizer": {"kind": "ifsq", "levels": [5, 5, 5]},
}
GENERATOR = {"size": "custom", "num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}


def recipe(task: dict[str, Any], data: dict[str, Any], network: str) -> Any:
    """A training recipe whose places are never opened."""
    return TrainConfig.model_validate(
        {
            "kind": "train",
            "name": "x",
            "output": "unused",
            "steps": 100,
            "data": {"url": "unused", "global_batch_size": 64, **data},
            "task": task,
            "optim": {network: {"lr": 1e-3}},
        }
    )


def write_run(
    folder: Path,
    config: Config,
    name: str,
    network: nn.Module,
    task: dict[str, Any],
    updates: int = 0,
) -> Path:
    """A checkpoint of step 7 with averages that differ from the live weights and buffers.

    Args:
        folder: of the run.
        config: its recipe.
        name: of the network.
        network: whose values are the live ones.
        task: what the header says of the task.
        updates: of the network's optimizer; the header says nothing of them if 0.
    """
    pieces = [
        Piece(name, key, state, tuple(value.shape), 0, value.detach().reshape(-1) + offset)
        for key, value in network.named_parameters()
        for state, offset in ((MASTER, 0.0), (AVERAGE, 0.25))
    ]
    known = {key for key, _ in network.named_parameters()}
    buffers = {f"live/{name}/{k}": v for k, v in network.state_dict().items() if k not in known}
    floating = {key: value for key, value in buffers.items() if value.is_floating_point()}
    buffers |= {key.replace("live/", "ema/", 1): v + 0.25 for key, v in floating.items()}
    writer = CheckpointWriter(
        folder / "checkpoints", rank=0, world_size=1, attempt="x", retention=Retention(1)
    )
    header: dict[str, Any] = {"recipe": to_dict(config), "task": task}
    if updates:
        header["optimizer_steps"] = {name: updates}
    writer.save(7, pieces, buffers, header)
    writer.close()
    return folder


def tokenizer_run(folder: Path, seed: int, **model: Any) -> Path:
    """A run of a tokenizer of 16 px images."""
    torch.manual_seed(seed)
    task = {"kind": "tokenizer", "model": TOKENIZER | model, "adversarial": None}
    view = {"kind": "raw", "image_size": 16}
    config = recipe(task, {"kind": "images", "view": view}, "autoencoder")
    return write_run(folder, config, "autoencoder", build_tokenizer(config.task.model), {})


def generator_run(
    folder: Path, tokenizer: Path, kind: str, spread: float | None = None, seed: int = 0
) -> Path:
    """A run of a generator of that tokenizer's tokens or latents.

    Args:
        folder: to write.
        tokenizer: run of `tokenizer_run`.
        kind: ``autoregressive`` or ``diffusion``.
        spread: all weights are normal with this deviation; as at the start of a training if None.
        seed: of the weights.
    """
    fingerprint = load_tokenizer(tokenizer).fingerprint
    spec = GeneratorSpec((4, 4), (125,), 3, fingerprint, (0.0,) * 3, (0.5,) * 3)
    spec = spec.speaking("tokens" if kind == "autoregressive" else "latents")
    config = recipe({"kind": kind, "model": GENERATOR}, {"kind": "tokens"}, "generator")
    torch.manual_seed(seed)
    network = build_generator(config.task, spec)
    if spread is not None:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=spread)
    return write_run(folder, config, "generator", network, spec.to_dict())
