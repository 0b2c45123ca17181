"""Runs on a token dataset's columns: the same as if teacher and tokenizer had run on the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ifsq_train.artifacts.trained import load_generator
from ifsq_train.config import TokenDataConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.data.base import Extras
from ifsq_train.data.open import open_train_data
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.models import repa
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.train import run
from tests.support.precompute_parts import configure, make_parts, write_tokenizer
from tests.support.repa_ways import WAYS, largest_difference, losses

pytestmark = pytest.mark.heavy

SMALL = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 32, "num_classes": 3}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return make_parts(tmp_path_factory.mktemp("stored"))


@pytest.fixture
def teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The file of a DINOv2 that is too small to be true."""
    monkeypatch.setitem(repa.SIZES, "S", {"num_layers": 1, "dim": 32, "num_heads": 2})
    torch.manual_seed(3)
    network = repa.DinoTeacher(**repa.SIZES["S"], grid=(37, 37))
    weights = {name: torch.randn_like(value) * 0.1 for name, value in network.state_dict().items()}
    save_file(weights, tmp_path / "dino.safetensors")
    return str(tmp_path / "dino.safetensors")


def recipe(kind: str, output: Path, **task: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": kind,
        "output": str(output),
        "steps": 4,
        "task": {"kind": kind, "model": SMALL, **task},
        "optim": {"generator": {"lr": 1e-3}},
        "strategy": {"kind": "torch"},
        "log_every_steps": 1,
    }


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_repa_is_the_same_from_stored_features_and_from_pixels(
    parts: dict[str, Any], teacher: str, tmp_path: Path, kind: str
) -> None:
    stored = {"weights": teacher, "size": "S", "precision": "fp32"}
    run_precompute_local(configure(parts, tmp_path / "tokens", teacher=stored), device="cpu")
    data = {
        "kind": "tokens", "url": str(tmp_path / "tokens"), "images": parts["source"],
        "global_batch_size": 4,
    }  # fmt: skip
    aligned = {"teacher": teacher, "size": "S", "weight": 2.0, "depth": 1, "projector_width": 16}
    task = {"repa": aligned, "tokenizer": parts["tokenizer"]}
    if kind == "diffusion":
        # On images these numbers would be measured when the run begins.
        task["latents"] = {"mean": [0.0] * 4, "std": [0.5] * 4}
    logged = {way: losses(way, recipe(kind, tmp_path / way, **task), data) for way in WAYS}
    for way in WAYS[1:]:
        assert largest_difference(logged["stored"], logged[way]) <= 1e-5, way


@pytest.mark.parametrize("kind", ["ae", "vae"])
def test_flow_on_stored_latents(parts: dict[str, Any], tmp_path: Path, kind: str) -> None:
    write_tokenizer(tmp_path / kind, kind=kind)
    changes = {"tokenizer": str(tmp_path / kind), "latents": "fp16"}
    run_precompute_local(configure(parts, tmp_path / "tokens", **changes), device="cpu")
    data = {"kind": "tokens", "url": str(tmp_path / "tokens"), "global_batch_size": 8}
    config = validate_recipe({**recipe("diffusion", tmp_path / "run"), "data": data}, "test")
    assert isinstance(config, TrainConfig)
    assert np.isfinite(run(config, InProcessContext())["final_loss"])
    scaling = load_generator(tmp_path / "run").scaling
    assert scaling is not None

    opened = open_train_data(
        TokenDataConfig(**data), seed=0, run_folder=tmp_path, rank=0,
        device=torch.device("cpu"), extras=Extras(latents=True),
    )  # fmt: skip
    batches = torch.cat([opened.load(step, 0, 1).inputs for step in range(20)])
    scaled = scaling.normalize(batches)
    tolerance = 0.05 if kind == "ae" else 0.1
    assert torch.allclose(scaled.mean((0, 2, 3)), torch.zeros(4), atol=tolerance)
    assert torch.allclose(scaled.std((0, 2, 3)), torch.ones(4), atol=tolerance)
    assert torch.equal(opened.load(1, 0, 1).inputs, opened.load(1, 0, 1).inputs)
