"""Generators trained by earlier releases open: their headers keep their keys and meaning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.artifacts.networks import build_dit, build_llamagen
from ifsq_train.artifacts.trained import load_generator
from ifsq_train.checkpoint.format import Piece
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import AutoregressiveTaskConfig, DiffusionTaskConfig
from ifsq_train.models.generator_spec import GeneratorSpec

MODEL = {"size": "custom", "num_layers": 1, "num_heads": 1, "dim": 8, "num_classes": 10}
# As version 0.1.0 wrote them before one object owned these facts.
TASKS: dict[str, dict[str, Any]] = {
    "autoregressive": {
        "tokenizer_fingerprint": "5a" * 32,
        "codebook_sizes": [81, 81],
        "grid": [4, 4],
    },
    "diffusion": {
        "tokenizer_fingerprint": "5a" * 32,
        "latent_channels": 4,
        "grid": [4, 4],
        "latent_mean": [0.0, 0.5, -0.5, 0.25],
        "latent_std": [1.0, 0.5, 2.0, 0.75],
    },
}
DATA = {
    "kind": "tokens",
    "url": "tokens",
    "tokenizer": "tokenizer",
    "images": None,
    "global_batch_size": 2,
    "shuffle_window": 16384,
    "prefetch_batches": 2,
    "reader_threads": 1,
}


def write(folder: Path, kind: str) -> torch.nn.Module:
    """A checkpoint with an earlier header; returns the network in it."""
    task = {"kind": kind, "model": MODEL}
    torch.manual_seed(0)
    if kind == "autoregressive":
        model = AutoregressiveTaskConfig.model_validate(task).model
        network: torch.nn.Module = build_llamagen(model, (81, 81), (4, 4))
    else:
        network = build_dit(DiffusionTaskConfig.model_validate(task).model, 4, (4, 4))
    recipe = {
        "kind": "train",
        "name": "earlier",
        "output": "run",
        "steps": 1,
        "data": DATA,
        "task": task,
        "optim": {"generator": {"lr": 1e-3}},
    }
    pieces = [
        Piece("generator", name, "master", tuple(p.shape), 0, p.detach().reshape(-1))
        for name, p in network.named_parameters()
    ]
    parameters = dict(network.named_parameters())
    buffers = {
        f"live/generator/{name}": value
        for name, value in network.state_dict().items()
        if name not in parameters
    }
    writer = CheckpointWriter(
        folder / "checkpoints", rank=0, world_size=1, attempt="a", retention=Retention(1)
    )
    writer.save(1, pieces, buffers, {"recipe": recipe, "task": TASKS[kind]})
    writer.close()
    return network


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_a_checkpoint_with_an_earlier_header_opens(tmp_path: Path, kind: str) -> None:
    network = write(tmp_path, kind)
    trained = load_generator(tmp_path)
    for name, value in network.state_dict().items():
        assert torch.equal(trained.network.state_dict()[name], value)
    assert trained.spec.tokenizer_fingerprint == "5a" * 32
    assert trained.spec.grid == (4, 4)
    assert (trained.scaling is None) == (kind == "autoregressive")


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_what_is_written_has_the_same_keys_in_the_same_order(kind: str) -> None:
    """The fingerprint of a generator, which samples record, is a digest over this."""
    spec = GeneratorSpec.from_dict(TASKS[kind])
    assert list(spec.to_dict().items()) == list(TASKS[kind].items())
