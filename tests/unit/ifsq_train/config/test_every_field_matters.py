"""Every field of a recipe, changed alone, changes what a run is or does, or is listed here.

Two steps are taken with each other value. What no such run can show names the test that does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.models.quantizers import FSQ
from tests.support.image_samples import write_class_folder
from tests.support.known_tokens import SPEC, write_dataset
from tests.support.precompute_parts import write_tokenizer
from tests.support.recipe_fields import differ, first_other, leaves, observed, whole
from tests.support.repository import REPOSITORY

pytestmark = pytest.mark.heavy

QUANTIZER = "task.model.quantizer."
SHOWN_ELSEWHERE = {
    "name": "tests/unit/ifsq_train/metrics/test_prometheus.py",
    "output": "tests/unit/ifsq_train/config/test_paths.py",
    "tags": "tests/unit/ifsq_train/metrics/test_prometheus.py",
    "trackers": "tests/plugins/test_trackers.py",
    "checkpoint.every_steps": "tests/support/exact_resume.py",
    "profile": "tests/unit/ifsq_train/training/test_profiling.py",
    "dry_run": "tests/unit/ifsq_train/training/test_faults.py",
    "data.mix": "tests/unit/ifsq_train/data/test_image_train_data.py",
    "data.decoder": "tests/unit/ifsq_train/training/test_kernels.py",
    "strategy.zero_stage": "tests/unit/ifsq_train/training/test_exact_resume.py",
    "strategy.offload_optimizer": "tests/distributed/test_traces_at_every_engine.py",
    "strategy.activation_checkpointing": "tests/distributed/test_traces_at_every_engine.py",
    "strategy.compile": "tests/unit/ifsq_train/training/test_kernels.py",
    "strategy.deterministic": "tests/unit/ifsq_train/training/test_kernels.py",
    "task.perceptual.weight": "tests/unit/ifsq_train/tasks/test_task_details.py",
    "task.repa": "tests/unit/ifsq_train/tasks/test_stored_inputs.py",
    "task.model.quantizer.digit_order": "tests/unit/ifsq_train/models/test_quantizers.py",
}
"""Field, with all below it: the file whose tests show what it does."""

ONLY_IN = {
    "task.codebook_weight": "vq",
    f"{QUANTIZER}entropy_ratio": "normalized",
    f"{QUANTIZER}kind": "slope",
    f"{QUANTIZER}factorized_channels": "groups",
    "task.latents.measure_images": "images",
    "task.tokenizer": "images",
    "task.tokenizer_precision": "images",
    "optim.autoencoder.momentum": "autoregressive",
    "optim.discriminator": "the same as optim.autoencoder",
}
"""Fields that mean something in one of the recipes only; there they are walked."""

DONE = {"steps", "networks", "weights", "averages", "rates", "order", "described", "logged"}


def tokenizer(folder: Path, quantizer: dict[str, Any], **model: Any) -> dict[str, Any]:
    return {
        "kind": "train",
        "name": "fields",
        "output": str(folder / "run"),
        "steps": 8,
        "seed": 3,
        "log_every_steps": 3,
        "dry_run": False,
        "ema_decay": 0.5,
        "ema_warmup": False,
        "profile": {"first_step": 4},
        "data": {
            "kind": "images",
            "url": str(folder / "images"),
            "view": {"kind": "adm_random", "image_size": 16},
            "global_batch_size": 4,
            "shuffle_window": 8,
        },
        "task": {
            "kind": "tokenizer",
            "model": {
                "quantizer": quantizer,
                "channel_multipliers": [1, 2],
                "base_channels": 8,
                "num_res_blocks": 1,
                "norm_groups": 4,
                **model,
            },
            "adversarial": {"start_step": 0, "num_layers": 2, "base_channels": 8}
            | {"adaptive_max": 1e-3},
        },
        "optim": {
            name: {"lr": 1e-3, "weight_decay": 0.1, "schedule": "wsd", "warmup_steps": 2}
            for name in ("autoencoder", "discriminator")
        },
        "strategy": {"kind": "torch", "micro_batch_size": 3},
        "checkpoint": {"keep_every_steps": 3, "keep_best": {"metric": "loss"}},
    }


def classifier(folder: Path) -> dict[str, Any]:
    recipe = tokenizer(folder, {"kind": "ae"})
    recipe["task"] = {
        "kind": "classifier",
        "model": {"num_classes": 3, "channels": [8, 16], "blocks": 1, "dropout": 0.2},
        "label_smoothing": 0.1,
        "max_shift": 1,
    }
    recipe["optim"] = {"classifier": {"lr": 1e-3}}
    return recipe


def generator(folder: Path, task: dict[str, Any]) -> dict[str, Any]:
    shape = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 16, "num_classes": 3,
             "class_dropout": 0.5}  # fmt: skip
    recipe = tokenizer(folder, {"kind": "ae"})
    recipe["data"] = {"kind": "tokens", "url": str(folder / "tokens"), "global_batch_size": 4}
    recipe["task"] = {**task, "model": shape | task["model"]}
    recipe["optim"] = {"generator": {"lr": 1e-2, "kind": "muon"}}
    return recipe


def recipes(folder: Path) -> dict[str, dict[str, Any]]:
    """By name; `WALKED` says which part of each is walked."""
    diffusion: dict[str, Any] = {"kind": "diffusion", "model": {}, "flow": {"shift": 0.5}}
    fixed = {"latents": {"mean": [0.0, 0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0, 4.0]}}
    images = generator(folder, {**diffusion, "tokenizer": str(folder / "tokenizer")})
    images["data"] = tokenizer(folder, {"kind": "ae"})["data"]
    images["task"]["latents"] = {"measure_images": 4}
    quantizers: dict[str, dict[str, Any]] = {
        "tokenizer": {"kind": "ifsq", "levels": [5, 5, 5], "alpha": 1.5},
        "slope": {"kind": "ifsq", "levels": [5, 5, 5]},
        "groups": {"kind": "ifsq", "levels": [5, 5, 5], "factorized_channels": [1, 2]},
        "vq": {"kind": "vq", "codebook_size": 8},
        "normalized": {"kind": "vq", "codebook_size": 8, "normalized": True, "entropy_ratio": 0.1},
        "lfq": {"kind": "lfq", "num_channels": 4, "entropy_anneal_steps": 4},
        "vae": {"kind": "vae", "num_channels": 2, "kl_weight": 0.1},
    }
    every_step = {"lfq": tokenizer(folder, quantizers["lfq"])}
    every_step["lfq"]["task"]["adversarial"]["schedule"] = "both"
    weighted = {"kind": "autoregressive", "model": {}, "group_weights": [1.0, 0.5]}
    return {
        **{name: tokenizer(folder, quantizer) for name, quantizer in quantizers.items()},
        **every_step,
        "classifier": classifier(folder),
        "autoregressive": generator(folder, weighted),
        "diffusion": generator(folder, diffusion | fixed),
        "images": images,
    }


WALKED: dict[str, tuple[str, ...]] = {
    "tokenizer": ("",),
    "slope": (f"{QUANTIZER}kind",),
    "groups": (f"{QUANTIZER}factorized_channels",),
    "vq": (QUANTIZER, "task.codebook_weight"),
    "normalized": (f"{QUANTIZER}beta", f"{QUANTIZER}entropy_ratio"),
    "lfq": (QUANTIZER,),
    "vae": (QUANTIZER,),
    "classifier": ("task.",),
    "autoregressive": ("task.", "optim.generator.momentum"),
    "diffusion": ("task.",),
    "images": ("task.tokenizer_precision", "task.latents.measure_images"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fields")
    images = write_class_folder(folder / "source", per_class=4)
    pack_folder(images, folder / "images", threads=1, max_bad_samples=0)
    write_tokenizer(folder / "tokenizer", levels=5)
    quantizer = FSQ((17, 17, 17, 17), groups=(2, 2))
    spec = replace(SPEC, codebook_sizes=(289, 289), quantizer=quantizer.spec())
    write_dataset(folder / "tokens", spec)
    return folder


def is_walked(name: str, path: str) -> bool:
    """Whether a field is to change something in a recipe."""
    passed_over = [*SHOWN_ELSEWHERE, *(field for field, own in ONLY_IN.items() if own != name)]
    below = any(f"{path}.".startswith(f"{field}.") for field in passed_over)
    return path.startswith(WALKED[name]) and not below


@pytest.mark.parametrize("name", list(WALKED))
def test_every_field_changes_something(folder: Path, tmp_path: Path, name: str) -> None:
    recipe = whole(recipes(folder)[name])
    recipe["output"] = str(tmp_path / "run")
    before = observed(recipe, tmp_path)
    assert isinstance(before, dict), before
    moving = differ(before, observed(recipe, tmp_path))
    assert moving.isdisjoint(DONE), "the same recipe does the same"
    unseen, fixed = [], []
    for path, value in leaves(recipe):
        if not is_walked(name, path):
            continue
        changed = first_other(recipe, path, value)
        if changed is None:
            fixed.append(path)
        elif not differ(before, observed(changed, tmp_path), moving):
            unseen.append(path)
    assert unseen == []
    # Another kind needs other fields beside it, and a part that is not there has none.
    there = [path for path in fixed if not path.endswith((".kind", ".size", "perceptual.weights"))]
    assert [path for path in there if path != "kind"] == []


def test_what_is_shown_elsewhere_is_named_there() -> None:
    for field, place in SHOWN_ELSEWHERE.items():
        assert field.rsplit(".", maxsplit=1)[-1] in (REPOSITORY / place).read_text(), field
