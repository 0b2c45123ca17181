"""Which fields of recipes are paths is said by their types, and they are made absolute once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from ifsq_train.config import to_dict
from ifsq_train.config.load import list_recipes, load_recipe, recipe_schema, validate_recipe
from ifsq_train.config.paths import path_keys, with_absolute_paths

MIX = ["data.url=null", "data.mix=[{url: a, weight: 1}, {url: s3://bucket/b, weight: 2}]"]


def test_lists_of_datasets_are_made_absolute_and_urls_stay(tmp_path: Path) -> None:
    config: Any = with_absolute_paths(load_recipe("demo/tokenizer", MIX), tmp_path)
    assert [part.url for part in config.data.mix] == [str(tmp_path / "a"), "s3://bucket/b"]


def test_a_nul_in_a_path_is_refused() -> None:
    values = to_dict(load_recipe("demo/tokenizer")) | {"output": "a\0b"}
    with pytest.raises(UserError, match="output: no path can hold the character NUL"):
        validate_recipe(values, "test")


def test_the_home_of_nobody_is_refused() -> None:
    config = load_recipe("demo/tokenizer", ["output=~no-such-user-here/run"])
    with pytest.raises(UserError, match="~no-such-user-here/run: there is no such user"):
        with_absolute_paths(config)


def test_optional_and_nested_paths(tmp_path: Path) -> None:
    changes = ["lpips=[vgg.pt, heads.pt]", "teacher=~/dino.pt", "tokenizer=t", "data=d"]
    changes += ["view={kind: adm_center, image_size: 16}"]
    config: Any = with_absolute_paths(load_recipe("demo/evaluation", changes), tmp_path)
    assert config.lpips == (str(tmp_path / "vgg.pt"), str(tmp_path / "heads.pt"))
    assert config.teacher == str(Path.home() / "dino.pt")
    assert config.inception is None
    tokenizer: Any = load_recipe("demo/tokenizer", ["task.perceptual.weights=lpips.pt"])
    moved = with_absolute_paths(tokenizer, tmp_path)
    assert moved.task.perceptual.weights == str(tmp_path / "lpips.pt")
    assert moved.task.model is tokenizer.task.model


@pytest.mark.parametrize("name", [name for name, _ in list_recipes() if "studies/" not in name])
def test_nothing_but_path_fields_changes(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    moved = with_absolute_paths(recipe, tmp_path)
    assert validate_recipe(to_dict(moved), name) == moved
    before, after = _leaves(to_dict(recipe)), _leaves(to_dict(moved))
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {key for key in path_keys(recipe) if not before[key].startswith("/")}
    assert {key.rpartition(".")[2] for key in path_keys(recipe)} >= {"output"}
    assert with_absolute_paths(moved, Path("/elsewhere")) == moved


def test_the_schema_says_which_texts_are_paths() -> None:
    output = recipe_schema()["$defs"]["TrainConfig"]["properties"]["output"]
    assert output["format"] == "path-or-url"


def _leaves(node: Any, key: str = "") -> dict[str, Any]:
    if isinstance(node, dict | list):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        return {k: v for name, part in items for k, v in _leaves(part, f"{key}.{name}").items()}
    return {key.removeprefix("."): node}
