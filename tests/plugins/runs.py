"""Small runs for ideas, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ifsq_train.checkpoint.reader import open_checkpoint
from ifsq_train.config import TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.train import run

VIEW = {"kind": "adm_center", "image_size": 8}


def train(values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Train a recipe to its end; its result."""
    config = validate_recipe({**values, **changes}, "test")
    assert isinstance(config, TrainConfig)
    return run(config, InProcessContext(device=torch.device("cpu")))


def recipe(
    output: Path, data: dict[str, Any], task: dict[str, Any], network: str
) -> dict[str, Any]:
    """Four steps of a task that trains one network, batches of four."""
    return {
        "kind": "train",
        "name": "idea",
        "output": str(output),
        "steps": 4,
        "data": {"global_batch_size": 4, **data},
        "task": task,
        "optim": {network: {"lr": 1e-3}},
        "strategy": {"kind": "torch"},
        "ema_decay": 0.5,
        "log_every_steps": 1,
        "checkpoint": {"every_steps": 1},
    }


def tokenizer_task(quantizer: dict[str, Any]) -> dict[str, Any]:
    """A small tokenizer (f2) with this quantizer."""
    model = {
        "quantizer": quantizer,
        "channel_multipliers": [1, 1],
        "base_channels": 8,
        "num_res_blocks": 1,
        "z_channels": 4,
        "norm_groups": 4,
    }
    return {"kind": "tokenizer", "adversarial": None, "model": model}


def assert_resumes(values: dict[str, Any], expected: Path, output: Path) -> None:
    """Stopped after half of its steps and run again, it ends with the weights of `expected`."""
    stopped = {**values, "output": str(output)}
    half = values["steps"] // 2
    train(stopped, steps=half)
    assert train(stopped)["resumed_from"] == half
    ended, wanted = averaged_weights(output), averaged_weights(expected)
    assert all(torch.equal(ended[name], wanted[name]) for name in wanted)


def averaged_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of a run's newest checkpoint, by parameter."""
    checkpoint = open_checkpoint(folder)
    (network,) = checkpoint.networks()
    return checkpoint.weights(network, "ema")
