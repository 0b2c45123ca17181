"""A data source from outside: trained on, mixed, resumed, precomputed and measured on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.config import EvaluateConfig, PrecomputeConfig
from ifsq_train.config.load import recipe_schema
from ifsq_train.evaluation.evaluate import evaluate
from ifsq_train.precompute.job import run_precompute_local
from tests.plugins.runs import VIEW, assert_resumes, recipe, tokenizer_task, train

SHAPES = {"kind": "shapes", "num_images": 12, "image_size": 16}
FSQ = {"kind": "ifsq", "levels": [5, 5, 5]}


@pytest.fixture(scope="module")
def trained(idea: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Run folder of a tokenizer trained on made images, and its recipe."""
    folder = tmp_path_factory.mktemp("shapes") / "tokenizer"
    data = {"kind": "images", "url": SHAPES, "view": VIEW}
    values = recipe(folder, data, tokenizer_task(FSQ), "autoencoder")
    train(values)
    return folder, values


def test_the_schema_describes_it(idea: Path) -> None:
    definitions = recipe_schema()["$defs"]
    assert definitions["ShapesConfig"]["description"].startswith("Discs (class 0)")
    url = str(definitions["ImageDataConfig"]["properties"]["url"])
    assert "ShapesConfig" in url
    assert "path-or-url" in url


def test_a_stopped_run_ends_like_one_that_was_not(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    assert_resumes(trained[1], trained[0], tmp_path)


def test_it_can_be_a_part_of_a_mixture(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    other = {**SHAPES, "seed": 1}
    mix = [{"url": SHAPES, "weight": 1}, {"url": other, "weight": 3}]
    data = {"kind": "images", "mix": mix, "view": VIEW}
    values = recipe(tmp_path, data, tokenizer_task(FSQ), "autoencoder")
    assert np.isfinite(train(values, steps=1)["final_loss"])


def test_it_is_precomputed_with_its_labels(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    values = {"source": SHAPES, "tokenizer": str(trained[0]), "output": str(tmp_path), "view": VIEW}
    config = PrecomputeConfig.model_validate({"kind": "precompute", **values})
    run_precompute_local(config, device="cpu")
    ids = np.arange(12)
    batch = TokenDataset.open(str(tmp_path)).read(ids, np.zeros(12, np.int64))
    assert batch.labels.tolist() == (ids % 2).tolist()


def test_it_is_measured_on(trained: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    values = {"tokenizer": str(trained[0]), "data": SHAPES, "view": VIEW}
    output = str(tmp_path / "result.json")
    config = EvaluateConfig.model_validate({"kind": "evaluate", "output": output, **values})
    assert evaluate(config)["metrics"]["psnr_db"] > 0
