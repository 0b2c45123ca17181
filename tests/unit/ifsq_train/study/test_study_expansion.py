"""From a study's recipe to variants and unique, content-addressed stages."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from data_pipelines.errors import UserError
from ifsq_train.config import StudyConfig, TrainConfig
from ifsq_train.config.load import list_recipes, load_recipe
from ifsq_train.study.expand import Expansion, expand, restricted
from ifsq_train.study.plan import plan_study

SHIPPED = [name for name, _ in list_recipes() if name.startswith("studies/")]


def smoke(*overrides: str) -> Expansion:
    config = load_recipe("studies/smoke", list(overrides))
    assert isinstance(config, StudyConfig)
    return expand(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_study_expands_and_its_claims_name_what_it_has(name: str) -> None:
    from ifsq_train.study.claims import judge
    from ifsq_train.study.rows import collect_rows

    config = load_recipe(name)
    assert isinstance(config, StudyConfig)
    found = expand(config)
    verdicts = judge(config, collect_rows(found, {}))
    assert {one.verdict for one in verdicts} <= {"undecided"}


def test_a_plan_has_every_unique_stage_and_counts_its_uses() -> None:
    found = smoke()
    plans = plan_study(found)
    assert len(plans) == len(found.stages)
    uses = {one.stage.name: one.uses for one in plans}
    assert uses["images"] == 8
    assert uses["tokenizer"] == 2
    trained = [one for one in plans if one.stage.kind == "train"]
    assert all(one.flops and one.num_bytes for one in trained)


def test_variants_share_the_stages_they_have_in_common() -> None:
    found = smoke()
    kinds = [stage.name for stage in found.stages.values()]
    # Two bounds, two depths, two seeds: tokenizers do not depend on the generator's depth.
    assert len(found.variants) == 8
    assert kinds.count("images") == 1
    assert kinds.count("tokenizer") == kinds.count("tokens") == 4
    assert kinds.count("generator") == kinds.count("evaluation") == 8


def test_only_some_variants_and_what_they_need() -> None:
    found = smoke()
    part = restricted(found, ["fsq"])
    assert {v.labels["bound"] for v in part.variants} == {"fsq"}
    assert len(part.stages) == 2 + (len(found.stages) - 2) // 2
    with pytest.raises(UserError, match="no variant has the label 'vq'"):
        restricted(found, ["vq"])


def test_inputs_come_before_the_stages_that_need_them() -> None:
    seen: set[str] = set()
    for digest, stage in smoke().stages.items():
        assert set(stage.inputs) <= seen
        seen.add(digest)


def test_digests_depend_on_the_science_alone() -> None:
    plain = set(smoke().stages)
    assert set(smoke("stages.generator.log_every_steps=7").stages) == plain
    assert set(smoke("stages.generator.strategy.precision=fp32").stages) == plain
    changed = set(smoke("stages.generator.steps=61").stages)
    assert len(changed & plain) == 10, "only generators and what follows them are new"


def test_seeds_reach_the_stages_that_have_one() -> None:
    found = smoke()
    seeds = {s.recipe.seed for s in found.stages.values() if isinstance(s.recipe, TrainConfig)}
    assert seeds == {0, 1}


def changed(**changes: Any) -> StudyConfig:
    config = load_recipe("studies/smoke")
    assert isinstance(config, StudyConfig)
    return StudyConfig.model_validate({**copy.deepcopy(config.model_dump()), **changes})


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"generater.steps": [1, 2]}, "'generater.steps' names no stage's key"),
        ({"generator.stepz": [1, 2]}, "stages.generator: stepz: unknown key"),
        ({"generator.steps": [0]}, "stages.generator: steps: found 0"),
        ({"samples.generator": ["stage:nothing"]}, "'stage:nothing' names no stage"),
        ({"images.source": ["stage:evaluation"]}, "stages in a circle"),
    ],
)
def test_faults_are_named_with_variant_and_stage(axes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        expand(changed(axes=axes))


def test_an_unknown_stage_of_a_measure_is_refused() -> None:
    measures = {"psnr": {"stage": "evaluatoin", "key": "psnr_db", "label": "PSNR"}}
    with pytest.raises(ValueError, match="no stage 'evaluatoin'"):
        changed(measures=measures, claims=(), plots=())


def test_equal_flops_give_the_larger_network_fewer_steps() -> None:
    budget = {"equal": "flops", "stage": "generator", "amount": 1e11}
    found = expand(changed(budget=budget))
    steps = {}
    for variant in found.variants:
        recipe = found.stages[variant.stages["generator"]].recipe
        assert isinstance(recipe, TrainConfig)
        steps.setdefault(variant.labels["depth"], set()).add(recipe.steps)
    assert len(steps["1"]) == len(steps["2"]) == 1
    assert max(steps["2"]) < max(steps["1"])


def test_a_curve_repeats_what_reads_the_training_and_nothing_else() -> None:
    plain, curved = expand(changed()), expand(changed(curve={"stage": "generator", "steps": [30]}))
    new = [s for digest, s in curved.stages.items() if digest not in plain.stages]
    assert {s.name for s in new} == {"samples", "evaluation"}
    assert len(new) == 16
    one = curved.variants[0]
    assert set(one.points[30]) == {"samples", "evaluation"}


def test_compression_is_counted_as_the_paper_counts_it() -> None:
    quantizer = {"kind": "ifsq", "levels": [17, 17, 17, 17]}
    model = "tokenizer.task.model"
    axes = {
        "q": {
            "ifsq": {f"{model}.quantizer": quantizer, f"{model}.channel_multipliers": [1] * 4},
            "ae": {
                f"{model}.quantizer": {"kind": "ae", "num_channels": 4},
                f"{model}.channel_multipliers": [1] * 4,
            },
        }
    }
    stages = changed().stages
    stages = {name: stages[name] for name in ("images", "held_out", "tokenizer")}
    measures = {"loss": {"stage": "tokenizer", "key": "final.loss", "label": "loss"}}
    found = expand(changed(stages=stages, axes=axes, measures=measures, claims=(), plots=()))
    facts = {v.labels["q"]: v.facts["compression"] for v in found.variants}
    # f8 with 4 channels: 96x at 4 bits, 24x for continuous latents of 16 bits.
    assert facts == {"ifsq": 96.0, "ae": 24.0}
