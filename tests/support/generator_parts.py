"""Small generators that have taken a step, and what it takes to draw from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ifsq_train.config import SampleConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.train import run
from tests.support.precompute_parts import configure, make_parts

CLASSES = 3


def make_generators(folder: Path) -> dict[str, str]:
    """A tokenizer and one run of each kind below `folder`; paths by name."""
    parts = make_parts(folder, levels=5)
    run_precompute_local(configure(parts, folder / "tokens"), device="cpu")
    for kind in ("autoregressive", "diffusion"):
        model = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32}
        values = {
            "kind": "train",
            "name": kind,
            "output": str(folder / kind),
            "steps": 2,
            "data": {"kind": "tokens", "url": str(folder / "tokens"), "global_batch_size": 4},
            "task": {"kind": kind, "model": {**model, "num_classes": CLASSES}},
            "optim": {"generator": {"lr": 1e-2}},
            "strategy": {"kind": "torch"},
            "ema_decay": None,
        }
        config = validate_recipe(values, "test")
        assert isinstance(config, TrainConfig)
        run(config, InProcessContext(device=torch.device("cpu")))
    names = ("tokenizer", "autoregressive", "diffusion")
    return {name: str(folder / name) for name in names}


def sampling(
    generators: dict[str, str], kind: str, output: Path | str, **changes: Any
) -> SampleConfig:
    """Four samples of each class, three at a time."""
    values: dict[str, Any] = {
        "kind": "sample",
        "generator": generators[kind],
        "tokenizer": generators["tokenizer"],
        "output": str(output),
        "samples_per_class": 4,
        "batch_size": 3,
        "cfg_scale": 1.5,
        "flow": {"num_steps": 4},
    }
    return SampleConfig.model_validate({**values, **changes})
