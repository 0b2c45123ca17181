"""From a study's recipe to variants and unique, content-addressed stages."""

from __future__ import annotations

import copy
import re
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
        expand(changed(axes=axes, claims=(), plots=()))


def better(**change: Any) -> list[dict[str, Any]]:
    claim = {
        "id": "A", "kind": "better", "statement": "s", "measure": "psnr",
        "first": {"bound": "ifsq"}, "second": {"bound": "fsq"},
    }  # fmt: skip
    return [{**claim, **change}]


def trend(x: str) -> list[dict[str, Any]]:
    return [{"id": "T", "kind": "trend", "statement": "s", "measure": "psnr", "x": x}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims": better(first={"bound": "vq"})}, "no 'bound: vq' in the study; there are ifsq"),
        ({"claims": better(first={"bond": "ifsq"})}, "no axis 'bond'; there are bound, depth"),
        ({"claims": better(first={"bound": "fsq"})}, "first and second are the same"),
        ({"claims": better() * 2}, "the id 'A' is there twice"),
        ({"claims": trend("size")}, "no fact 'size'; there are"),
        ({"claims": better(kind="crossing")}, "the study has none; add curve"),
        ({"plots": [{"title": "P", "measure": "psnr", "x": "dept"}]}, "x: found 'dept'"),
        ({"plots": [{"title": t, "measure": "psnr", "x": "depth"} for t in ("P a", "P-a")]},
         "two titles give the file name 'p-a'.svg"),
        ({"histograms": [{"title": "H", "stage": "none", "axis": "bound", "labels": ["ifsq"]}]},
         "no stage 'none'"),
        ({"seeds": (0, 0)}, "seeds: 0 is there twice"),
        ({"seeds": (2**70,)}, "allowed are 0 to"),
        ({"seeded": ()}, "no stage gets the 2 seeds"),
        ({"axes": {"tokenizer.steps": []}, "claims": ()}, "has no values"),
        ({"axes": {"q": {"a": {"facts.x": "much"}}}, "claims": ()}, "a finite number"),
        ({"variants": {"v": {"generator.steps": 3}}, "axes": {"generator.steps": [4]}},
         "is changed by 'variant' and by 'generator.steps'"),
        ({"budget": {"equal": "time", "stage": "images", "amount": 9}}, "'images' is no training"),
        ({"budget": {"equal": "flops", "stage": "generator", "amount": 1}}, "less than one step"),
        ({"curve": {"stage": "generator", "steps": [7]}}, "step 7 is not kept"),
        ({"curve": {"stage": "generator", "steps": [700]}}, "the training has 60 steps"),
        ({"axes": {"samples.generator": ["stage:images"]}, "claims": ()},
         "'stage:images' is of kind images, needed is train"),
        ({"axes": {"samples.generator": ["stage:generator@last"]}, "claims": ()},
         "after @ stands a step of a training"),
    ],
)  # fmt: skip
def test_what_cannot_mean_anything_is_refused_before_it_runs(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        expand(changed(**changes))


def test_a_budget_s_end_is_a_point_of_the_curve_and_steps_beyond_it_are_none() -> None:
    stages = copy.deepcopy(changed().stages)
    stages["generator"]["checkpoint"] = {"every_steps": 10, "keep_every_steps": 10}
    plain = expand(changed(stages=stages)).variants[0]
    each = plan_study(expand(changed(stages=stages)))
    flops = next(p.flops for p in each if p.stage.digest == plain.stages["generator"])
    assert flops is not None
    budget = {"equal": "flops", "stage": "generator", "amount": flops * 35.5 / 60}
    curve = {"stage": "generator", "steps": [10, 20, 50]}
    found = expand(changed(stages=stages, budget=budget, curve=curve)).variants[0]
    assert list(found.points) == [10, 20, 35]
    assert found.points[35]["samples"] == found.stages["samples"]


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
    stages = copy.deepcopy(changed().stages)
    stages["generator"]["checkpoint"] = {"every_steps": 30, "keep_every_steps": 30}
    curve = {"stage": "generator", "steps": [30]}
    plain, curved = expand(changed(stages=stages)), expand(changed(stages=stages, curve=curve))
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
