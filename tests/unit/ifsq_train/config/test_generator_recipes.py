"""The shipped generator recipes are the networks and settings they say they are."""

from __future__ import annotations

import pytest
import torch

from ifsq_train.artifacts.networks import build_dit, build_llamagen
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    TokenDataConfig,
    TrainConfig,
)
from ifsq_train.config.load import RECIPE_FOLDER, list_recipes, load_recipe

NAMES = [name for name, _ in list_recipes() if name.split("/")[0] in ("llamagen", "dit")]
GENERATOR_TASKS = (AutoregressiveTaskConfig, DiffusionTaskConfig)


def load(name: str) -> TrainConfig:
    recipe = load_recipe(name)
    assert isinstance(recipe, TrainConfig)
    return recipe


def parameters(name: str) -> int:
    """Of the network, with the fixed positions that the released counts include."""
    task = load(name).task
    with torch.device("meta"):
        if isinstance(task, AutoregressiveTaskConfig):
            network = build_llamagen(task.model, (17**4,), (16, 16), task.repa)
            return sum(p.numel() for p in network.parameters())
        assert isinstance(task, DiffusionTaskConfig)
        side = 32 if "f8" in name else 16
        network = build_dit(task.model, 4, (side, side), task.repa)
    return sum(p.numel() for p in network.parameters()) + network.pos_embed.numel()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llamagen/b-f16-ifsq-d4-4bit", 214_010_880),
        ("llamagen/l-f16-ifsq-d4-4bit", 480_407_552),
        ("llamagen/xl-f16-ifsq-d4-4bit", 946_570_240),
        # With a projector for DINOv2-B: +350,780,160 - 342,910,976 over the plain network.
        ("llamagen/l-repa-f16-ifsq-d4-4bit", 480_407_552 + 7_869_184),
        ("dit/l1-f16-ifsq-d4-4bit", 458_098_660),
        ("dit/xl1-f16-ifsq-d4-4bit", 675_196_228),
        # As many positions as L/1 on f16; wider first (4 * 12 * D) and last (12 (D + 1)) layers.
        ("dit/l2-f8-ifsq-d4-4bit", 458_098_660 + 12 * 1024 + 12 * 1025),
    ],
)
def test_parameter_counts(name: str, expected: int) -> None:
    assert parameters(name) == expected


def test_alignment_is_the_papers() -> None:
    """Lambda 2.0 for LlamaGen and 0.5 for DiT, a third of the way in (8 blocks of 24)."""
    aligned = 0
    for name in NAMES:
        recipe = load(name)
        assert isinstance(recipe.task, GENERATOR_TASKS)
        repa = recipe.task.repa
        assert ("repa" in name) == (repa is not None), name
        if repa is None:
            continue
        aligned += 1
        assert repa.weight == (2.0 if recipe.task.kind == "autoregressive" else 0.5), name
        if recipe.task.model.size == "L":
            assert repa.depth == 8, name
        if isinstance(recipe.data, TokenDataConfig):
            # Either the features are stored with the tokens, or the teacher has its pixels.
            assert (repa.teacher is None) == ("-repa" in recipe.data.url), name
            assert (repa.teacher is None) == (recipe.data.images is None), name
    assert aligned >= 10


@pytest.mark.parametrize("name", NAMES)
def test_header_says_how_to_run_it(name: str) -> None:
    lines = (RECIPE_FOLDER / f"{name}.yaml").read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("#"))
    assert f"ifsq train {name} --workers" in header
    assert "# Hardware: " in header
    assert "# Expected: " in header
