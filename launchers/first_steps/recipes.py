"""Recipes that fit a dataset, linked with each other: what `ifsq init` writes.

Small recipes train in minutes on two CPU cores and show that everything works on the user's own
images; the paper's are for GPUs. Both are ordinary recipes, to be edited.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from data_pipelines.errors import UserError
from data_pipelines.manifest import MANIFEST_JSON, ShardManifest
from data_pipelines.storage.open import open_storage
from launchers.stages import held_out, pack_images

SIZES = ("small", "paper")
HELD_OUT_PERCENT = 10
MIN_IMAGES = 64
SMALL_SIDE = 32
PAPER_SIDE = 256
SHARD_BYTES = 64 << 20
SHARDS_LOOKED_AT = 16
STAGES = ("tokenizer", "tokens", "generator", "samples", "evaluation")


@dataclass(frozen=True)
class DatasetFacts:
    """What the recipes are fitted to.

    Attributes:
        num_images: of the dataset trained on.
        num_classes: classes it names.
        short_side: pixels; nine of ten images have at least this.
        uniform: all images looked at are squares of `short_side`.
    """

    num_images: int
    num_classes: int
    short_side: int
    uniform: bool

    @staticmethod
    def of(manifest: ShardManifest) -> DatasetFacts:
        """Looks at the indices of a few shards, never at pixels.

        Raises:
            UserError: too few images, or labels are missing.
        """
        if manifest.num_samples < MIN_IMAGES:
            raise UserError(
                f"{manifest.storage.url} has {manifest.num_samples} images to train on; give at"
                f" least {MIN_IMAGES}"
            )
        rows = [manifest.rows(i) for i in range(min(manifest.num_shards, SHARDS_LOOKED_AT))]
        labels = np.concatenate([part.label for part in rows])
        if not manifest.classes or labels.min() < 0:
            raise UserError(
                f"{manifest.storage.url} has images without a class, which generators need; put"
                " every image into the folder of its class and pack again"
            )
        height = np.concatenate([part.height for part in rows])
        width = np.concatenate([part.width for part in rows])
        short = np.minimum(height, width)
        side = int(np.percentile(short, 10, method="lower"))
        uniform = bool((height == side).all() and (width == side).all())
        return DatasetFacts(manifest.num_samples, len(manifest.classes), side, uniform)


@dataclass(frozen=True)
class WrittenRecipes:
    """What was written: facts of the dataset and the commands to run, in order, for the user."""

    facts: tuple[str, ...]
    commands: tuple[str, ...]


def write_recipes(
    dataset: str, folder: Path, output: Path, *, held_out: str | None, size: str
) -> WrittenRecipes:
    """Write the five recipes; pack the images first where `dataset` is a folder of class folders.

    Args:
        dataset: packed dataset (path or s3://), or a folder of class folders.
        folder: of the recipes; must not hold any yet.
        output: where datasets and runs go.
        held_out: dataset to measure on; None splits it off while packing.
        size: one of `SIZES`.

    Raises:
        UserError: no such dataset, one that no recipe fits, or recipes in the way.
    """
    taken = [f"{name}.yaml" for name in STAGES if (folder / f"{name}.yaml").exists()]
    if taken:
        raise UserError(
            f"{folder} already holds {', '.join(taken)}; give another folder, or move them away"
        )
    train, measured = _datasets(dataset, output, held_out)
    facts = DatasetFacts.of(ShardManifest.open(train))
    places = {"train": train, "held_out": measured, "runs": str(output)}
    make = _small if size == "small" else _paper
    recipes = make(facts, places)
    _write(folder, recipes, facts)
    return WrittenRecipes(
        facts=(
            f"{facts.num_images} images of {facts.num_classes} classes in {train},"
            f" measured on {measured}",
        ),
        commands=_commands(folder, output, size),
    )


def _datasets(dataset: str, output: Path, measured: str | None) -> tuple[str, str]:
    """Places of the dataset to train on and of the one to measure on."""
    if "://" in dataset or open_storage(dataset).exists(MANIFEST_JSON):
        ShardManifest.open(dataset)
        if measured is None:
            raise UserError(
                f"{dataset} is packed already; name the dataset to measure on with --held-out, or"
                " give the folder of images and both are made"
            )
        ShardManifest.open(measured)
        return dataset, measured
    if measured is not None:
        raise UserError(
            f"{dataset} is no packed dataset, but --held-out was given; pack it first with"
            " `ifsq data pack`"
        )
    places = (str(output / "data" / "train"), str(output / "data" / "held-out"))
    for place, wanted in zip(places, (False, True), strict=True):
        pack_images(
            Path(dataset),
            place,
            shard_bytes=SHARD_BYTES,
            seed=0,
            max_bad_samples=100,
            # A choice of its own: the folder may be what another split by names has left.
            keep=lambda name, wanted=wanted: held_out(f"init/{name}", HELD_OUT_PERCENT) == wanted,
        )
    return places


def _small(facts: DatasetFacts, places: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Networks that two CPU cores train in minutes."""
    side = min(SMALL_SIDE, facts.short_side)
    if side < 8:
        raise UserError(
            f"images have a short side of {facts.short_side} pixels; the networks need 8"
        )
    # Every halving of the tokenizer must divide the side.
    halvings = 2 if side >= 16 else 1
    side -= side % (4 * 2**halvings // 2)
    view: dict[str, Any] = {"kind": "adm_center", "image_size": side}
    if facts.uniform and facts.short_side == side:
        view = {"kind": "raw", "image_size": side}
    batch = min(64, 2 ** int(np.log2(facts.num_images // 4)))
    return {
        "tokenizer": _small_tokenizer(places, view, min(batch, 32), halvings),
        "generator": _small_generator(places, batch, facts.num_classes),
        **_other_stages(facts, places, view, batch_size=64, samples=200, cfg_scale=1.5),
    }


_SMALL_TRAINING: dict[str, Any] = {
    "strategy": {"kind": "deepspeed", "zero_stage": 1, "precision": "fp32"},
    "ema_decay": 0.99,
    "checkpoint": {"every_steps": 200, "keep_last": 2},
    "log_every_steps": 10,
}


def _small_tokenizer(
    places: Mapping[str, str], view: Mapping[str, Any], batch: int, halvings: int
) -> dict[str, Any]:
    quantizer = {"kind": "ifsq", "levels": [17, 17, 17, 17], "factorized_channels": [2, 2]}
    model = {
        "quantizer": quantizer,
        "channel_multipliers": [1, 2, 2][: halvings + 1],
        "base_channels": 16,
        "num_res_blocks": 1,
        "z_channels": 16,
        "norm_groups": 8,
    }
    optimizer = {"lr": 2.0e-3, "betas": [0.9, 0.99], "schedule": "cosine", "warmup_steps": 50}
    return {
        "kind": "train",
        "name": "tokenizer",
        "output": f"{places['runs']}/tokenizer",
        "steps": 800,
        "data": {
            "kind": "images",
            "url": places["train"],
            "view": dict(view),
            "global_batch_size": batch,
        },
        "task": {"kind": "tokenizer", "pixel_loss": "l2", "adversarial": None, "model": model},
        "optim": {"autoencoder": optimizer},
        **_SMALL_TRAINING,
    }


def _small_generator(places: Mapping[str, str], batch: int, num_classes: int) -> dict[str, Any]:
    runs = places["runs"]
    model = {
        "size": "custom",
        "num_layers": 4,
        "num_heads": 4,
        "dim": 128,
        "num_classes": num_classes,
        "token_dropout": 0.1,
        "residual_dropout": 0.1,
        "feed_forward_dropout": 0.1,
    }
    optimizer = {
        "lr": 1.0e-3,
        "betas": [0.9, 0.95],
        "weight_decay": 0.05,
        "schedule": "cosine",
        "warmup_steps": 50,
    }
    return {
        "kind": "train",
        "name": "generator",
        "output": f"{runs}/generator",
        "steps": 400,
        "data": {
            "kind": "tokens",
            "url": f"{runs}/tokens",
            "tokenizer": f"{runs}/tokenizer",
            "global_batch_size": batch,
        },
        "task": {"kind": "autoregressive", "model": model},
        "optim": {"generator": optimizer},
        **_SMALL_TRAINING,
    }


def _paper(facts: DatasetFacts, places: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The paper's f16 iFSQ tokenizer and LlamaGen-B at 256 pixels."""
    if facts.short_side < PAPER_SIDE:
        raise UserError(
            f"--size paper trains on {PAPER_SIDE} pixels, but one image in ten has a short side of"
            f" {facts.short_side} or less; use --size small, or larger images"
        )
    runs = places["runs"]
    view = {"kind": "adm_center", "image_size": PAPER_SIDE}
    return {
        "tokenizer": {
            "extends": "tokenizer/f16-ifsq-d4-4bit",
            "output": f"{runs}/tokenizer",
            "data": {"url": places["train"]},
        },
        "generator": {
            "extends": "llamagen/b-f16-ifsq-d4-4bit",
            "output": f"{runs}/generator",
            "data": {"url": f"{runs}/tokens", "tokenizer": f"{runs}/tokenizer"},
            "task": {"model": {"num_classes": facts.num_classes}},
        },
        **_other_stages(facts, places, view, batch_size=32, samples=50_000, cfg_scale=1.75),
    }


def _other_stages(
    facts: DatasetFacts,
    places: Mapping[str, str],
    view: Mapping[str, Any],
    *,
    batch_size: int,
    samples: int,
    cfg_scale: float,
) -> dict[str, dict[str, Any]]:
    """Tokens, samples and evaluation, which differ little between the sizes."""
    runs = places["runs"]
    shared = {"tokenizer": f"{runs}/tokenizer"}
    return {
        "tokens": {
            "kind": "precompute",
            "source": places["train"],
            **shared,
            "output": f"{runs}/tokens",
            "view": dict(view),
            "batch_size": batch_size,
        },
        "samples": {
            "kind": "sample",
            "generator": f"{runs}/generator",
            **shared,
            "output": f"{runs}/samples",
            "samples_per_class": max(1, round(samples / facts.num_classes)),
            "batch_size": batch_size,
            "cfg_scale": cfg_scale,
        },
        "evaluation": {
            "kind": "evaluate",
            **shared,
            "data": places["held_out"],
            "view": dict(view),
            "samples": f"{runs}/samples",
            "output": f"{runs}/evaluation.json",
            "batch_size": batch_size,
        },
    }


def _commands(folder: Path, output: Path, size: str) -> tuple[str, ...]:
    workers = min(2, len(os.sched_getaffinity(0)))
    more = f"--workers {workers}" if size == "small" else "--workers 8 --gpus-per-worker 1"
    actors = f"--actors {workers}" if size == "small" else "--actors 8 --gpus-per-actor 1"
    return (
        f"ifsq train {folder}/tokenizer.yaml {more}",
        f"ifsq precompute {folder}/tokens.yaml {actors}",
        f"ifsq train {folder}/generator.yaml {more}",
        f"ifsq sample {folder}/samples.yaml",
        f"ifsq evaluate {folder}/evaluation.yaml",
        f"ifsq report {output}/tokenizer {output}/generator {output}/samples"
        f" {output}/evaluation.json --output {output}/report.html",
    )


def _write(folder: Path, recipes: Mapping[str, dict[str, Any]], facts: DatasetFacts) -> None:
    """Checked first, then all written."""
    from ifsq_train.config.load import load_recipe

    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name in STAGES:
            path = folder / f"{name}.yaml"
            head = (
                f"# {name.capitalize()} of {facts.num_images} images, {facts.num_classes} classes."
                " Made by `ifsq init`; change what you like.\n"
            )
            path.write_text(head + yaml.safe_dump(recipes[name], sort_keys=False))
            written.append(path)
            load_recipe(str(path), [])
    except UserError:
        for path in written:
            path.unlink()
        raise
