"""A quantizer from outside: trains, resumes, precomputes, serves generators, is measured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.artifacts.token_meaning import quantizer_of
from ifsq_train.artifacts.trained import load_tokenizer
from ifsq_train.config import EvaluateConfig, PrecomputeConfig
from ifsq_train.config.load import recipe_schema, validate_recipe
from ifsq_train.evaluation.evaluate import evaluate
from ifsq_train.precompute.job import run_precompute_local
from ifsq_train.study.costs import tokenizer_facts
from tests.plugins.runs import VIEW, assert_resumes, recipe, tokenizer_task, train
from tests.support.precompute_parts import write_images

BSQ = {"kind": "bsq", "num_channels": 6, "commitment_weight": 0.5}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "images")
    pack_folder(folder / "images", folder / "dataset", shard_bytes=20_000)
    return str(folder / "dataset")


@pytest.fixture(scope="module")
def trained(
    idea: Path, images: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """Run folder of a BSQ tokenizer, and its recipe."""
    folder = tmp_path_factory.mktemp("bsq") / "tokenizer"
    data = {"kind": "images", "url": images, "view": VIEW}
    values = recipe(folder, data, tokenizer_task(BSQ), "autoencoder")
    train(values)
    return folder, values


@pytest.fixture(scope="module")
def tokens(
    trained: tuple[Path, dict[str, Any]], images: str, tmp_path_factory: pytest.TempPathFactory
) -> str:
    folder = tmp_path_factory.mktemp("bsq") / "tokens"
    values = {"source": images, "tokenizer": str(trained[0]), "output": str(folder), "view": VIEW}
    config = PrecomputeConfig.model_validate({"kind": "precompute", **values})
    run_precompute_local(config, device="cpu")
    return str(folder)


def test_the_schema_describes_it(idea: Path) -> None:
    described = recipe_schema()["$defs"]["BsqConfig"]
    assert described["description"].startswith("Binary spherical quantization")
    assert "Of the soft bits" in described["properties"]["temperature"]["description"]


def test_a_stopped_run_ends_like_one_that_was_not(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, values = trained
    assert_resumes(values, folder, tmp_path)
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"commitment", "entropy", "code_entropy"} <= set(logged[-1])


def test_its_tokens_stand_for_corners_of_the_sphere(
    trained: tuple[Path, dict[str, Any]], tokens: str
) -> None:
    """Read back by the digit table, without the quantizer, and by the quantizer of the spec."""
    dataset = TokenDataset.open(tokens)
    height, width = dataset.spec.grid
    batch = dataset.read(np.arange(4), np.zeros(4, np.int64))
    indices = torch.as_tensor(batch.tokens).view(4, height, width, 1)
    latents = quantizer_of(dataset.spec, None).indices_to_latents(indices)
    assert dataset.spec.digits is not None
    assert np.array_equal(dataset.spec.digits.latents(indices.numpy()), latents.numpy())
    assert torch.allclose(latents.norm(dim=1), torch.ones(4, height, width))
    assert dataset.spec.tokenizer_fingerprint == load_tokenizer(trained[0]).fingerprint


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_generators_train_on_its_tokens(tokens: str, tmp_path: Path, kind: str) -> None:
    model = {"size": "custom", "num_layers": 1, "num_heads": 2, "dim": 16, "num_classes": 3}
    data = {"kind": "tokens", "url": tokens}
    values = recipe(tmp_path, data, {"kind": kind, "model": model}, "generator")
    assert np.isfinite(train(values, steps=1)["final_loss"])


def test_it_is_measured(trained: tuple[Path, dict[str, Any]], images: str, tmp_path: Path) -> None:
    values = {"tokenizer": str(trained[0]), "data": images, "view": VIEW}
    output = str(tmp_path / "result.json")
    config = EvaluateConfig.model_validate({"kind": "evaluate", "output": output, **values})
    metrics = evaluate(config)["metrics"]
    assert metrics["codebook_size"] == [64]
    assert metrics["psnr_db"] > 0


def test_studies_count_its_bits(idea: Path, tmp_path: Path) -> None:
    values = recipe(
        tmp_path, {"kind": "images", "url": "d", "view": VIEW}, tokenizer_task(BSQ), "autoencoder"
    )
    training = validate_recipe(values, "test")
    stage = SimpleNamespace(recipe=training)
    facts = tokenizer_facts({"tokenizer": "0"}, cast(Any, {"0": stage}))
    # One bit for each of 6 channels; f2, so 4 pixels of 24 bits a position.
    assert facts == {"compression": 16.0, "bits_per_channel": 1.0, "channels": 6.0}
