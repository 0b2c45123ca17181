"""Which settings may change between two starts of a run."""

from __future__ import annotations

import pytest

from data_pipelines.errors import UserError
from ifsq_train.checkpoint.train_state import TrainState
from ifsq_train.config import TrainConfig, to_dict
from ifsq_train.config.load import load_recipe
from ifsq_train.training.experiment import (
    changes_to_record,
    order_changes,
    recipe_changes,
    refuse_changes,
)


def _recipe(*changes: str) -> TrainConfig:
    recipe = load_recipe("demo/tokenizer", changes)
    assert isinstance(recipe, TrainConfig)
    return recipe


FREE = [
    "steps=9",
    "log_every_steps=1",
    "checkpoint.every_steps=7",
    "strategy.zero_stage=0",
    "strategy.micro_batch_size=3",
    "name=other",
    "data.url=/moved/data",
    "output=/moved/run",
]


def test_keys_that_extend_or_observe_may_change() -> None:
    changes = recipe_changes(to_dict(_recipe()), _recipe(*FREE))
    refuse_changes("run", 3, changes, ())
    assert "data.url" not in changes
    assert changes["steps"] == (350, 9)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("task.model.quantizer.alpha=1.0", "task.model.quantizer.alpha: None -> 1.0"),
        ("optim.autoencoder.lr=1", "optim.autoencoder.lr: 0.002 -> 1.0"),
        ("data.view.image_size=4", "data.view.image_size: 8 -> 4"),
        ("strategy.precision=bf16", "strategy.precision: fp32 -> bf16"),
        ("task.adversarial.start_step=5", "task.adversarial.start_step: 250 -> 5"),
        ("ema_decay=null", "ema_decay: 0.99 -> None"),
    ],
)
def test_anything_else_is_refused_with_both_values(change: str, said: str) -> None:
    changes = recipe_changes(to_dict(_recipe()), _recipe(change))
    with pytest.raises(UserError) as refused:
        refuse_changes("run", 3, changes, ())
    lines = str(refused.value).splitlines()
    assert said in lines
    assert lines[0].startswith("run was trained with other settings up to step 3; restore them")
    key = said.partition(":")[0]
    parents = (key.rpartition(".")[0] or key, "task", "optim")
    refuse_changes("run", 3, changes, parents)


def test_recipes_of_earlier_releases_have_the_defaults_of_today() -> None:
    saved = to_dict(_recipe())
    del saved["ema_warmup"], saved["strategy"]["compile"]
    saved["data"]["decode_threads"] = 8
    assert recipe_changes(saved, _recipe()) == {}
    assert recipe_changes(saved, _recipe("ema_warmup=false")) == {}


def test_changes_are_recorded_after_those_of_earlier_starts() -> None:
    earlier = {"key": "seed", "was": 0, "is": 1, "step": 2}
    header = {"train_state": {"step": 5}, "changes": [earlier]}
    recorded = changes_to_record(header, {"task.repa": ("not set", 1.0)})
    assert recorded == [earlier, {"key": "task.repa", "was": None, "is": 1.0, "step": 5}]


def test_another_order_of_the_data_names_what_changed() -> None:
    config = _recipe("seed=4", "data.global_batch_size=32")
    changes = recipe_changes(to_dict(_recipe()), config)
    header = {"data": {"num_samples": 10, "digest": "a" * 64}}
    found = order_changes(header, changes, {"num_samples": 12, "digest": "b" * 64})
    assert found == [
        "seed: 0 -> 4",
        "data.global_batch_size: 64 -> 32",
        "dataset: 10 samples, digest aaaaaaaaaaaa -> 12 samples, digest bbbbbbbbbbbb",
    ]
    saved = TrainState("old", step=3).to_dict()
    with pytest.raises(UserError, match=r"seed: 0 -> 4; data\.global_batch_size: 64 -> 32; data"):
        TrainState("new").restore(saved, found)
    state = TrainState("new")
    state.restore(saved, found, other_order=True)
    assert (state.step, state.plan_digest) == (3, "new")
