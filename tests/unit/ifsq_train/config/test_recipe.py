"""Recipes: every fault is reported, with its path and a remedy."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.load import list_recipes, load_recipe, recipe_schema, validate_recipe
from launchers.cli.options import loading_config


def good_values() -> dict[str, Any]:
    return {
        "kind": "train",
        "name": "t",
        "output": "out",
        "steps": 3,
        "data": {
            "kind": "images",
            "url": "data",
            "global_batch_size": 4,
            "view": {"kind": "adm_center", "image_size": 16},
        },
        "task": {
            "kind": "tokenizer",
            "model": {"quantizer": {"kind": "ifsq", "levels": [17, 17]}, "z_channels": 2},
        },
        "optim": {"autoencoder": {"lr": 1e-4}, "discriminator": {"lr": 1e-4}},
    }


def test_every_shipped_recipe_is_valid() -> None:
    assert list_recipes()
    for name, _ in list_recipes():
        load_recipe(name)


def test_all_faults_are_reported_at_once() -> None:
    values = good_values()
    values["stps"] = 1
    values["steps"] = "many"
    values["task"]["model"]["quantizer"]["alpah"] = 2
    del values["data"]["view"]["image_size"]
    with pytest.raises(UserError) as caught:
        validate_recipe(values, "r.yaml")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        "data.view.image_size",
        "steps",
        "stps",
        "task.model.quantizer.alpah",
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"stps": 1}, "r.yaml: stps: unknown key; did you mean 'steps'?"),
        (
            {"steps": "many"},
            "r.yaml: steps: found 'many'; input should be a valid integer,"
            " unable to parse string as an integer",
        ),
        ({"task": {"kind": "tokeniser"}}, "r.yaml: task.kind: found 'tokeniser', allowed"),
        ({"optim": {"autoencoder": {"lr": -1}}}, "optim.autoencoder.lr: found -1; input should"),
        ({"optim": {"autoencoder": {"lr": 1}}}, "optim has ['autoencoder'], the task trains"),
        ({"data": None}, "r.yaml: data: found None"),
    ],
)
def test_fault_names_path_and_remedy(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        validate_recipe(good_values() | change, "r.yaml")
    assert expected in str(caught.value)


def test_keys_allowed_in_an_optional_part_are_listed() -> None:
    values = good_values()
    values["task"]["adversarial"] = {"zzz": 1}
    with pytest.raises(UserError, match=r"adversarial\.zzz: unknown key; allowed here: .*weight"):
        validate_recipe(values, "r.yaml")


def test_even_levels_need_the_shifted_bound() -> None:
    values = good_values()
    values["task"]["model"]["quantizer"]["levels"] = [8, 5]
    with pytest.raises(UserError, match=r"task\.model\.quantizer: bound 'simple' needs odd levels"):
        validate_recipe(values, "r.yaml")


def test_extends_and_overrides(tmp_path: Path) -> None:
    import yaml

    (tmp_path / "parent.yaml").write_text(yaml.safe_dump(good_values()))
    (tmp_path / "child.yaml").write_text(
        "extends: parent.yaml\nsteps: 7\nname: child\noutput: runs/${name}\n"
    )
    recipe = load_recipe(str(tmp_path / "child.yaml"), ["seed=5", "data.global_batch_size=8"])
    assert isinstance(recipe, TrainConfig)
    assert (recipe.steps, recipe.seed, recipe.output) == (7, 5, "runs/child")
    assert recipe.data.global_batch_size == 8


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "a: ${missing}\n", "just words"])
def test_unusable_files_give_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_recipe(str(tmp_path / "bad.yaml"))
    assert "\n" not in str(caught.value)


def test_unknown_recipe_suggests_a_near_one() -> None:
    with pytest.raises(UserError, match="did you mean 'demo/tokenizer'"):
        load_recipe("demo/tokeniser")


def test_override_without_equals_sign_is_refused() -> None:
    with pytest.raises(UserError, match="not key=value"):
        load_recipe("demo/tokenizer", ["steps"])


def test_schema_describes_fields() -> None:
    text = str(recipe_schema())
    assert "Levels per latent channel" in text


def test_machine_settings_of_older_recipes_are_left_out_with_the_option_to_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    older = ["data.decode_threads=8", "data.prefetch_batches=4"]
    assert load_recipe("demo/tokenizer", older) == load_recipe("demo/tokenizer")
    assert "data.decode_threads, data.prefetch_batches: not part of a recipe" in caplog.text
    assert "--loading decode_threads=8 --loading prefetch_batches=4" in caplog.text
    assert "decode_threads" not in json.dumps(recipe_schema())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["threads=2"], "--loading threads=2: allowed are prefetch_batches, reader_threads"),
        (["decode_threads=0"], "--loading decode_threads=0: Input should be greater than"),
        (["decode_threads"], "--loading decode_threads=: Input should be a valid integer"),
    ],
)
def test_loading_options_are_checked(given: list[str], said: str) -> None:
    assert loading_config(["decode_threads=3"]).decode_threads == 3
    with pytest.raises(UserError, match=re.escape(said)):
        loading_config(given)


@pytest.mark.parametrize(
    "override",
    ["steps=&a [*a]", "steps=" + "9" * 5000, "data.url=[1,{", "output=a\0b", "data=[1,2]"],
)
def test_an_override_that_cannot_be_read_is_one_line(override: str) -> None:
    with pytest.raises(UserError, match="override") as refused:
        load_recipe("demo/tokenizer", [override])
    assert len(str(refused.value)) < 600
