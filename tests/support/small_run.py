"""A trained tokenizer and held-out images, as small as they go."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.config import TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.train import run

VIEW = {"kind": "raw", "image_size": 16}


def write_images(folder: Path, count: int) -> str:
    """A packed dataset of `count` random images of 16 px; its folder."""
    random = np.random.default_rng(0)
    for number in range(count):
        place = folder / "images" / f"class{number % 2}" / f"{number:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place)
    pack_folder(folder / "images", folder / "data")
    return str(folder / "data")


def train_tokenizer(folder: Path, data: str, quantizer: dict[str, Any]) -> str:
    """Two steps of a tiny tokenizer; the run's folder."""
    values = {
        "kind": "train",
        "name": "small",
        "output": str(folder / "run"),
        "steps": 2,
        "data": {"kind": "images", "url": data, "view": VIEW, "global_batch_size": 4},
        "task": {
            "kind": "tokenizer",
            "model": {
                "quantizer": quantizer,
                "channel_multipliers": [1, 2],
                "base_channels": 8,
                "num_res_blocks": 1,
                "norm_groups": 4,
            },
            "adversarial": None,
        },
        "optim": {"autoencoder": {"lr": 1e-3}},
        "strategy": {"kind": "torch"},
    }
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    run(config, InProcessContext())
    return str(folder / "run")
