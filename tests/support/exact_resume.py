"""One training, and the same training stopped half way and taken up again by `train.run`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ifsq_train.checkpoint.format import step_folder
from ifsq_train.checkpoint.reader import Checkpoint, CheckpointError
from ifsq_train.config import TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.context import RunContext
from ifsq_train.train import run

STEPS, STOPPED_AT = 6, 3


def moving_recipe(data: str, output: Path, strategy: dict[str, Any]) -> TrainConfig:
    """A tokenizer with a discriminator: running moments in the one, batch norms in the other."""
    values = {
        "kind": "train",
        "name": "moving",
        "output": str(output),
        "steps": STEPS,
        "log_every_steps": 1,
        "data": {
            "kind": "images",
            "url": data,
            "view": {"kind": "raw", "image_size": 16},
            "global_batch_size": 4,
        },
        "task": {
            "kind": "tokenizer",
            "model": {
                "quantizer": {"kind": "ifsq", "levels": [5, 5]},
                "channel_multipliers": [1, 2],
                "base_channels": 8,
                "num_res_blocks": 1,
                "norm_groups": 4,
            },
            "perceptual": {"weight": 0.0},
            "adversarial": {"start_step": 0, "num_layers": 2, "base_channels": 8},
        },
        "optim": {"autoencoder": {"lr": 1e-3}, "discriminator": {"lr": 1e-3}},
        "strategy": strategy,
        "checkpoint": {"every_steps": STOPPED_AT, "keep_last": 3},
        "ema_decay": 0.5,
    }
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    return config


def everything(folder: Path, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All tensors and all counters of a checkpoint."""
    checkpoint = Checkpoint(step_folder(folder / "checkpoints", step))
    tensors: dict[str, Tensor] = {}
    for network in checkpoint.networks():
        for state in ("master", "exp_avg", "exp_avg_sq", "ema"):
            try:
                found = checkpoint.weights(network, state)
            except CheckpointError:
                continue
            tensors |= {f"{network}/{state}/{name}": value for name, value in found.items()}
        for prefix in (f"live/{network}", f"ema/{network}"):
            found = checkpoint.buffers(prefix)
            tensors |= {f"{prefix}/{name}": value for name, value in found.items()}
    state = {k: v for k, v in checkpoint.header["train_state"].items() if k != "last_record"}
    return tensors, {"state": state, "steps": checkpoint.header["optimizer_steps"]}


def run_and_resume(
    data: str, output: Path, strategy: dict[str, Any], context: RunContext
) -> dict[str, Any]:
    """Differences between the two runs, and what shows that the test could have failed.

    Returns:
        JSON-able: ``unequal`` and ``missing`` tensors, ``counters`` and ``logged`` records of
        both, ``moved`` buffers (differ between step 3 and step 6), ``averaged`` buffers (differ
        from the live ones).
    """
    whole, taken_up = output / "whole", output / "taken_up"
    run(moving_recipe(data, whole, strategy), context)
    shutil.copytree(whole, taken_up)
    for step in range(STOPPED_AT + 1, STEPS + 1):
        shutil.rmtree(step_folder(taken_up / "checkpoints", step), ignore_errors=True)
    (taken_up / "result.json").unlink(missing_ok=True)
    run(moving_recipe(data, taken_up, strategy), context)
    (a, counters_a), (b, counters_b) = (everything(f, STEPS) for f in (whole, taken_up))
    half, _ = everything(whole, STOPPED_AT)
    live = [name for name in a if name.startswith("live/") and a[name].is_floating_point()]
    averages = [name for name in a if name.startswith("ema/")]
    states = {name.split("/")[1] for name in a if name not in (*live, *averages)}
    return {
        "unequal": [name for name in a if name in b and not torch.equal(a[name], b[name])],
        "missing": sorted(set(a) ^ set(b)),
        "counters": [counters_a, counters_b],
        "logged": [_logged(whole), _logged(taken_up)],
        "moved": [name for name in live if not torch.equal(a[name], half[name])],
        "averaged": [
            name
            for name in averages
            if not torch.equal(a[name], half[name])
            and not torch.equal(a[name], a[name.replace("ema/", "live/", 1)])
        ],
        "states": sorted(states - {"autoencoder", "discriminator"}),
    }


_TIMES = ("second", "wall_time", "goodput", "flops", "ratio", "memory")


def _logged(folder: Path) -> list[dict[str, float]]:
    """What was logged at every step, without what a clock has measured."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not any(t in key for t in _TIMES)}
        for line in lines
    ]
