"""What a search before the comparison tries, what it chooses, and the study that results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_pipelines.errors import UserError
from ifsq_train.config import StudyConfig, TrainConfig
from ifsq_train.config.load import load_recipe
from ifsq_train.config.study import Scalar
from ifsq_train.study.expand import expand
from ifsq_train.study.searches import Search, Trial, best_values, plan_search, with_values

LR = "optim.generator.lr"
VALUES = [1e-3, 3e-3, 1e-2]


def study(tmp_path: Path, **search: Any) -> StudyConfig:
    path = tmp_path / "study.yaml"
    found = {"stage": "generator", "key": LR, "values": VALUES, "first_steps": 20, **search}
    path.write_text(yaml.safe_dump({"extends": "studies/smoke", "search": found}))
    config = load_recipe(str(path))
    assert isinstance(config, StudyConfig)
    return config


def rates(search: Search, label: Scalar | None) -> dict[str, float]:
    found = {}
    for digest in search.trainings[label].values():
        recipe = search.stages[digest].recipe
        assert isinstance(recipe, TrainConfig)
        assert recipe.seed == 1000
        assert recipe.checkpoint.every_steps == recipe.log_every_steps == 20
        found[digest] = recipe.optim["generator"].lr
    return found


def test_every_label_of_an_axis_has_a_training_for_every_value(tmp_path: Path) -> None:
    search = plan_search(study(tmp_path, per="bound"))
    assert [*search.trainings] == ["ifsq", "fsq"]
    assert search.steps == 60
    for label in search.trainings:
        assert [*rates(search, label).values()] == VALUES
    # Images once; tokenizer and tokens of each bound; no samples and no evaluation.
    names = [stage.name for stage in search.inputs.values()]
    assert sorted(names) == ["images", "tokenizer", "tokenizer", "tokens", "tokens"]


def test_without_an_axis_one_value_is_searched_with_the_first_labels(tmp_path: Path) -> None:
    search = plan_search(study(tmp_path))
    assert [*search.trainings] == [None]
    assert len(search.inputs) == 3


def test_the_value_that_came_furthest_with_the_least_loss_is_chosen(tmp_path: Path) -> None:
    search = plan_search(study(tmp_path))
    first, second, third = search.trainings[None].values()
    ends = {first: Trial(60, 2.0), second: Trial(60, 1.5), third: Trial(20, 1.0)}
    assert best_values(search, ends) == {None: 3e-3}
    ends[second] = Trial(60, float("nan"))
    assert best_values(search, ends) == {None: 1e-3}
    ends[first] = Trial(60, 2.0, "NonFiniteError: step 60")
    assert best_values(search, ends) == {None: 1e-2}
    with pytest.raises(UserError, match="every training failed; the first: out of memory"):
        best_values(search, dict.fromkeys(ends, Trial(error="out of memory\nmore")))


@pytest.mark.parametrize("per", ["bound", "depth", None])
def test_the_study_that_results_has_the_values_and_says_so(tmp_path: Path, per: str | None) -> None:
    config = study(tmp_path, **({"per": per} if per else {}))
    labels = [*plan_search(config).trainings]
    chosen = dict(zip(labels, VALUES, strict=False))
    path = tmp_path / "tuned.yaml"
    path.write_text(yaml.safe_dump(with_values(config, chosen)))
    tuned = load_recipe(str(path))
    assert isinstance(tuned, StudyConfig)
    assert tuned.search is None
    assert "generator.optim.generator.lr was chosen among 0.001, 0.003, 0.01" in tuned.notes[-1]
    found = expand(tuned)
    for variant in found.variants:
        recipe = found.stages[variant.stages["generator"]].recipe
        assert isinstance(recipe, TrainConfig)
        assert recipe.optim["generator"].lr == chosen[variant.labels[per] if per else None]


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"per": "bounds"}, "search.per: no axis 'bounds'; there are bound, depth"),
        ({"seed": 1}, "search.seed: 1 is one of the study's seeds"),
        ({"values": [1e-3, 1e-3]}, "a value is given twice"),
        ({"stage": "tokens", "key": "batch_size", "values": [1, 2]}, "of kind 'precompute'"),
        ({"first_steps": 61}, "first_steps is 61, the training has 60"),
        ({"key": "optim.generator.learning_rate"}, "learning_rate"),
    ],
)
def test_a_search_that_cannot_be_done_is_refused(
    tmp_path: Path, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        plan_search(study(tmp_path, **search))


def test_a_study_without_a_search_says_what_to_add() -> None:
    config = load_recipe("studies/smoke")
    assert isinstance(config, StudyConfig)
    with pytest.raises(UserError, match="has no 'search'; add it"):
        plan_search(config)
