"""`ifsq doctor` and `ifsq init`, through the command line, from a folder of their own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from data_pipelines.errors import UserError
from data_pipelines.manifest import ShardManifest
from ifsq_train.config import EvaluateConfig, PrecomputeConfig, SampleConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from launchers.cli import app
from launchers.first_steps import doctor


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """120 images of 32 x 32 pixels in three class folders, in the folder we stand in."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for index in range(120):
        path = tmp_path / "photos" / f"class{index % 3}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return Path("photos")


def test_init_writes_recipes_that_are_valid_and_linked(photos: Path) -> None:
    shown = invoke("init", str(photos), "recipes")
    assert shown.exit_code == 0, shown.output
    kinds = {
        "tokenizer": TrainConfig,
        "tokens": PrecomputeConfig,
        "generator": TrainConfig,
        "samples": SampleConfig,
        "evaluation": EvaluateConfig,
    }
    recipes = {name: load_recipe(f"recipes/{name}.yaml", []) for name in kinds}
    assert {name: type(recipe) for name, recipe in recipes.items()} == kinds
    train, held_out = (ShardManifest.open(f"runs/data/{part}") for part in ("train", "held-out"))
    assert train.num_samples + held_out.num_samples == 120
    assert train.classes == held_out.classes == ["class0", "class1", "class2"]
    generator, tokens = recipes["generator"], recipes["tokens"]
    assert isinstance(generator, TrainConfig)
    assert isinstance(tokens, PrecomputeConfig)
    assert generator.task.model.num_classes == 3  # type: ignore[union-attr]
    assert Path(str(generator.data.url)) == Path(tokens.output)
    for name in ("ifsq train recipes/tokenizer.yaml", "ifsq evaluate recipes/evaluation.yaml"):
        assert name in shown.output


def test_init_overwrites_no_recipe(photos: Path) -> None:
    Path("recipes").mkdir()
    Path("recipes/tokens.yaml").write_text("mine")
    refused = invoke("init", str(photos), "recipes")
    assert isinstance(refused.exception, UserError)
    assert "already holds tokens.yaml" in str(refused.exception)
    assert Path("recipes/tokens.yaml").read_text() == "mine"
    assert not Path("runs").exists()


def test_init_of_a_packed_dataset_asks_what_to_measure_on(photos: Path) -> None:
    assert invoke("data", "pack", str(photos), "packed").exit_code == 0
    refused = invoke("init", "packed")
    assert isinstance(refused.exception, UserError)
    assert "--held-out" in str(refused.exception)
    assert invoke("init", "packed", "--held-out", "packed").exit_code == 0
    assert load_recipe("recipes/evaluation.yaml", []).data == "packed"  # type: ignore[union-attr]


def test_init_refuses_sizes_it_cannot_fit(photos: Path) -> None:
    assert "unknown" in str(invoke("init", str(photos), "--size", "huge").exception)
    refused = invoke("init", str(photos), "big", "--size", "paper")
    assert "short side of 32" in str(refused.exception)
    assert not Path("big/tokenizer.yaml").exists()


def test_doctor_names_each_part_once_and_ends_well_here(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path / "not" / "there" / "yet")
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert [check for check in checks if check.status == "problem"] == []
    assert all(check.remedy for check in checks if check.status != "ok")


def test_doctor_reports_a_driver_too_old_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_driver", lambda: ("535.104.05", ["NVIDIA H100 80GB HBM3"]))
    monkeypatch.setattr("torch.version.cuda", "13.0")
    found = doctor._gpus()
    assert found.status == "problem"
    assert "580" in found.remedy


def test_doctor_reports_a_ray_address_nobody_answers_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = doctor._ray()
    assert found.status == "problem"
    assert "unset it" in found.remedy
