"""Every field of recipes that draw, encode and measure, changed alone, is seen.

What is compared is what a job makes, not what its files say of the recipe. What none of these
small jobs can show names the file whose tests do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.tokens.reader import TokenDataset
from ifsq_train.config import EvaluateConfig, PrecomputeConfig, SampleConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.evaluation.evaluate import evaluate
from ifsq_train.precompute.job import ItemEncoder, run_precompute_local
from ifsq_train.sampling.draw import draw_samples, read_samples
from tests.support.image_samples import write_class_folder
from tests.support.recipe_fields import leaves, replaced, whole
from tests.support.repository import REPOSITORY
from tests.support.written_runs import generator_run, tokenizer_run

Recipe = dict[str, Any]
SHOWN_ELSEWHERE = {
    "output": "tests/unit/ifsq_train/config/test_paths.py",
    "compile": "tests/unit/ifsq_train/sampling/test_static_decoder.py",
    "sampler": "tests/plugins/test_maskgit.py",
    "max_bad_samples": "tests/unit/ifsq_train/precompute/test_precompute.py",
    "teacher": "tests/unit/ifsq_train/precompute/test_precompute_columns.py",
    "reference": "tests/unit/ifsq_train/evaluation/test_kept_features.py",
    "inception": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
    "classifier": "tests/unit/ifsq_train/study/test_classifier.py",
    "lpips": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
    "lpips_backbone": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
    "samples": "tests/unit/ifsq_train/evaluation/test_kept_features.py",
    "neighbors": "tests/unit/ifsq_train/evaluation/test_kept_features.py",
    "manifold_images": "tests/unit/ifsq_train/evaluation/test_kept_features.py",
    "teacher_size": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
    "cknna_neighbors": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
    "cknna_images": "tests/unit/ifsq_train/evaluation/test_evaluate.py",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Places of what the recipes read."""
    folder = tmp_path_factory.mktemp("parts")
    tokenizer = tokenizer_run(folder / "tokenizer", 0)
    for kind in ("autoregressive", "diffusion"):
        for seed in (0, 1):
            generator_run(folder / f"{kind}{seed}", tokenizer, kind, spread=0.3, seed=seed)
    tokenizer_run(folder / "other", 1)
    for count, name in ((3, "data"), (2, "fewer")):
        images = write_class_folder(folder / f"{name}-source", per_class=count)
        pack_folder(images, folder / name, threads=1)
    return {path.name: str(path) for path in folder.iterdir()}


def drawing(parts: dict[str, str], kind: str, **more: Any) -> Recipe:
    return {
        "kind": "sample",
        "generator": parts[f"{kind}0"],
        "tokenizer": parts["tokenizer"],
        "weights": "live",
        "output": "unused",
        "samples_per_class": 2,
        "batch_size": 4,
        "cfg_scale": 3.0,
        "preview": 4,
        **more,
    }


def drawn(recipe: Recipe) -> Any:
    """Pictures, their classes, the files they lie in, and in which parts they were drawn."""
    config, parts = validate_recipe(recipe, "test"), []
    assert isinstance(config, SampleConfig)
    draw_samples(config, lambda done, _: parts.append(done))
    found, folder = read_samples(config.output), Path(config.output)
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    preview = (folder / "preview.png").read_bytes() if config.preview else b""
    return found.images.tobytes(), found.labels.tolist(), files, preview, parts


TOKENS: Recipe = {
    "generator": "autoregressive1",
    "tokenizer": "other",
    "weights": "averaged",
    "samples_per_class": 3,
    "classes": [2, 0],
    "seed": 1,
    "batch_size": 3,
    "precision": "bf16",
    "cfg_scale": 1.5,
    "cfg_last": 0,
    "temperature": 3.0,
    "top_k": 2,
    "top_p": 0.2,
    "greedy": True,
    "format": "png",
    "preview": 1,
}
LATENTS: Recipe = {
    "generator": "diffusion1",
    "weights": "averaged",
    "seed": 1,
    "precision": "bf16",
    "cfg_scale": 1.5,
    "flow.num_steps": 4,
    "flow.method": "heun",
    "flow.shift": 3.0,
    "flow.cfg_start": 0.6,
    "flow.cfg_end": 0.3,
    "flow.guided_channels": 1,
}
ADAPTIVE: Recipe = {"flow.rtol": 0.2, "flow.atol": 0.2}


def encoding(parts: dict[str, str], **more: Any) -> Recipe:
    return {
        "kind": "precompute",
        "source": parts["data"],
        "tokenizer": parts["tokenizer"],
        "output": "unused",
        "view": {"kind": "adm_random", "image_size": 16},
        "latents": "fp32",
        "batch_size": 4,
        "samples_per_shard": 6,
        "decoder": "cpu",
        **more,
    }


def encoded(recipe: Recipe) -> Any:
    """Every row of every shard, and how many images are encoded at once."""
    config = validate_recipe(recipe, "test")
    assert isinstance(config, PrecomputeConfig)
    run_precompute_local(config, device="cpu")
    dataset = TokenDataset.open(config.output)
    views = np.repeat(np.arange(dataset.num_views), dataset.num_samples)
    ids = np.tile(np.arange(dataset.num_samples), dataset.num_views)
    rows = dataset.read(ids, views, columns=("latent_mean",))
    encoder = ItemEncoder(config)
    try:
        at_once = encoder._encoder.batch_size
    finally:
        encoder.close()
    means, sizes = rows.extra["latent_mean"], dataset.shard_sizes.tolist()
    return rows.tokens.tobytes(), means.tobytes(), str(means.dtype), sizes, at_once


ENCODING: Recipe = {
    "source": "fewer",
    "tokenizer": "other",
    "weights": "live",
    "view.kind": "adm_center",
    "view.image_size": 8,
    "view.box_halving": True,
    "view.flip": False,
    "view.num_views": 2,
    "view_seed": 1,
    "samples_per_shard": 4,
    "batch_size": 3,
    "precision": "bf16",
    "latents": "fp16",
    "decoder": "dali",
}


def measuring(parts: dict[str, str], **more: Any) -> Recipe:
    return {
        "kind": "evaluate",
        "output": "unused",
        "tokenizer": parts["tokenizer"],
        "data": parts["data"],
        "view": {"kind": "adm_center", "image_size": 16},
        "batch_size": 4,
        **more,
    }


def measured(recipe: Recipe) -> Any:
    """The numbers, and after how many images a step was reported."""
    config, steps = validate_recipe(recipe | {"output": recipe["output"] + ".json"}, "test"), []
    assert isinstance(config, EvaluateConfig)
    return evaluate(config, lambda done, _: steps.append(done))["metrics"], steps


MEASURING: Recipe = {
    "tokenizer": "other",
    "weights": "live",
    "data": "fewer",
    "view.kind": "ten_crop",
    "view.image_size": 8,
    "view.box_halving": True,
    "metrics": ["psnr"],
    "batch_size": 3,
}


def unseen(
    recipe: Recipe, changes: Recipe, do: Callable[[Recipe], Any], places: dict[str, str], to: Path
) -> list[str]:
    """Which of the changes, each made alone, leave what is done as it was."""

    def outcome(values: Recipe) -> Any:
        try:
            return do(values | {"output": tempfile.mkdtemp(dir=to)})
        except (UserError, DataError) as error:
            return str(error)

    before = outcome(recipe)
    assert not isinstance(before, str), before
    assert outcome(recipe) == before, "the same recipe does the same"
    found = []
    for path, value in changes.items():
        other = places.get(value, value) if isinstance(value, str) else value
        if outcome(replaced(recipe, path, other)) == before:
            found.append(path)
    return found


def missing(recipe: Recipe, *tables: Recipe) -> list[str]:
    """Fields of a recipe that no table changes and that nobody is named for."""
    named = {"kind", *SHOWN_ELSEWHERE}.union(*tables)
    return [
        path
        for path, _ in leaves(recipe)
        if path not in named and path.split(".")[0] not in SHOWN_ELSEWHERE
    ]


def test_drawing_tokens_and_latents(parts: dict[str, str], tmp_path: Path) -> None:
    tokens = whole(drawing(parts, "autoregressive"))
    assert unseen(tokens, TOKENS, drawn, parts, tmp_path) == []
    flow = {"num_steps": 3, "cfg_start": 0.0, "cfg_end": 0.9}
    latents = whole(drawing(parts, "diffusion", flow=flow))
    assert unseen(latents, LATENTS, drawn, parts, tmp_path) == []
    adaptive = replaced(latents, "flow.method", "dopri5")
    assert unseen(adaptive, ADAPTIVE, drawn, parts, tmp_path) == []
    assert missing(tokens, TOKENS, LATENTS, ADAPTIVE) == []


def test_encoding(parts: dict[str, str], tmp_path: Path) -> None:
    recipe = whole(encoding(parts))
    assert unseen(recipe, ENCODING, encoded, parts, tmp_path) == []
    assert missing(recipe, ENCODING) == []


def test_measuring(parts: dict[str, str], tmp_path: Path) -> None:
    recipe = whole(measuring(parts))
    assert unseen(recipe, MEASURING, measured, parts, tmp_path) == []
    assert missing(recipe, MEASURING) == []


def test_what_is_shown_elsewhere_is_named_there() -> None:
    for field, place in SHOWN_ELSEWHERE.items():
        assert field.rsplit(".", maxsplit=1)[-1] in (REPOSITORY / place).read_text(), field
