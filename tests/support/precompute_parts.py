"""A few images and an untrained tokenizer: all a precompute needs, made in a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.storage.open import open_storage
from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.checkpoint.format import Piece
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import PrecomputeConfig, TokenizerTaskConfig, TrainConfig, to_dict

NUM_IMAGES = 21
NUM_VIEWS = 2
SHARDS = 6
"""Of 4 images each, the last of one."""


def make_parts(folder: Path, levels: int = 17) -> dict[str, Any]:
    """Dataset and tokenizer below `folder`; the fields of a PrecomputeConfig except `output`."""
    write_images(folder / "images")
    pack_folder(folder / "images", folder / "dataset", shard_bytes=20_000)
    write_tokenizer(folder / "tokenizer", levels=levels)
    return {
        "kind": "precompute",
        "source": str(folder / "dataset"),
        "tokenizer": str(folder / "tokenizer"),
        "view": {"kind": "center_flip", "image_size": 16},
        "samples_per_shard": 4,
        "batch_size": 3,
        "decoder": "cpu",
    }


def configure(parts: dict[str, Any], output: Path, **changes: Any) -> PrecomputeConfig:
    """The recipe for one output folder."""
    return PrecomputeConfig.model_validate({**parts, "output": str(output), **changes})


def write_images(folder: Path) -> None:
    """Noise in three classes, of different sizes."""
    rng = np.random.default_rng(0)
    for i in range(NUM_IMAGES):
        path = folder / f"class{i % 3}" / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40 + i, 36)).save(path)


def write_tokenizer(
    folder: Path, seed: int = 0, kind: str = "ifsq", levels: int = 17, **model: Any
) -> None:
    """The checkpoint of a run that has not taken a step; `model` changes its architecture."""
    recipe = _tokenizer_recipe(folder, kind, levels, model)
    assert isinstance(recipe.task, TokenizerTaskConfig)
    torch.manual_seed(seed)
    network = build_tokenizer(recipe.task.model)
    parameters = dict(network.named_parameters())
    pieces = [
        Piece("autoencoder", name, "master", tuple(p.shape), 0, p.detach().reshape(-1))
        for name, p in parameters.items()
    ]
    buffers = {
        f"live/autoencoder/{name}": value
        for name, value in network.state_dict().items()
        if name not in parameters
    }
    writer = CheckpointWriter(
        folder / "checkpoints", rank=0, world_size=1, attempt="a", retention=Retention(1)
    )
    writer.save(1, pieces, buffers, {"recipe": to_dict(recipe)})
    writer.close()


def published_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset by name; what a killed writer left unfinished is none."""
    storage = open_storage(folder)
    return {path: storage.read(path) for path in storage.list()}


def _tokenizer_recipe(folder: Path, kind: str, levels: int, model: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate(tokenizer_recipe(folder, kind, levels, **model))


def tokenizer_recipe(
    folder: Path, kind: str = "ifsq", levels: int = 17, **model: Any
) -> dict[str, Any]:
    """A recipe that trains the tokenizer of `make_parts` for one step; `data.url` is to be set."""
    quantizer = {"kind": kind, "levels": [levels] * 4} if kind == "ifsq" else {"kind": kind}
    return {
        "kind": "train",
        "name": "tokenizer",
        "output": str(folder),
        "steps": 1,
        "data": {
            "kind": "images",
            "url": "unused",
            "view": {"kind": "adm_center", "image_size": 16},
            "global_batch_size": 2,
        },
        "task": {
            "kind": "tokenizer",
            "model": {
                "quantizer": quantizer,
                "channel_multipliers": [1, 2],
                "base_channels": 8,
                "num_res_blocks": 1,
                "norm_groups": 4,
            }
            | model,
            "adversarial": None,
        },
        "optim": {"autoencoder": {"lr": 1e-3}},
    }
