"""LlamaGen-REPA and DiT-REPA from tokens with stored features, with a teacher on the fly, and from
pixels: the largest difference of any loss over the run.

    python -m tests.benchmarks.tokens.repa_equality --steps 200

CIFAR images, a small untrained tokenizer, a DINOv2-S with random weights (its real shape: 12 blocks
of 384), features stored in fp32; the three runs see the same samples and views in the same order.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from ifsq_train.config import PrecomputeConfig
from ifsq_train.models.repa import SIZES, DinoTeacher
from ifsq_train.precompute.job import run_precompute_local
from tests.support.cifar import write_cifar
from tests.support.precompute_parts import write_tokenizer
from tests.support.repa_ways import WAYS, largest_difference, losses

MODEL = {"size": "custom", "num_layers": 4, "num_heads": 4, "dim": 128, "num_classes": 10}


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--batch-size", type=int, default=4)
    chosen = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="repa-"))
    write_cifar(folder / "images", chosen.images)
    # Eight pixels a token: 4 x 4 tokens of a CIFAR image.
    quantizer = {"kind": "ifsq", "levels": [5, 5, 5, 5]}
    write_tokenizer(folder / "tokenizer", channel_multipliers=[1, 2, 2, 2], quantizer=quantizer)
    torch.manual_seed(0)
    torch.save(DinoTeacher(**SIZES["S"], grid=(37, 37)).state_dict(), folder / "dino.pth")
    run_precompute_local(PrecomputeConfig.model_validate(precompute(folder)), device="cpu")
    data = {
        "kind": "tokens", "url": str(folder / "tokens"), "images": str(folder / "images"),
        "global_batch_size": chosen.batch_size,
    }  # fmt: skip
    for kind in ("autoregressive", "diffusion"):
        logged: dict[str, list[dict[str, float]]] = {}
        for way in WAYS:
            began = time.perf_counter()
            values = recipe(kind, folder, folder / f"{kind}-{way}", chosen.steps)
            logged[way] = losses(way, values, data)
            last = logged[way][-1]
            seconds = time.perf_counter() - began
            ended = f"loss {last['loss']:.6f}, alignment {last['alignment']:.6f}, {seconds:.0f} s"
            print(f"{kind} {way}: {len(logged[way])} steps, {ended}", flush=True)
        for way in WAYS[1:]:
            difference = largest_difference(logged["stored"], logged[way])
            print(f"{kind}: stored against {way}: at most {difference:.2e}", flush=True)


def precompute(folder: Path) -> dict[str, Any]:
    return {
        "kind": "precompute",
        "source": str(folder / "images"),
        "tokenizer": str(folder / "tokenizer"),
        "output": str(folder / "tokens"),
        "view": {"kind": "center_flip", "image_size": 32},
        "samples_per_shard": 64,
        "batch_size": 16,
        "decoder": "cpu",
        "teacher": {"weights": str(folder / "dino.pth"), "size": "S", "precision": "fp32"},
    }


def recipe(kind: str, folder: Path, output: Path, steps: int) -> dict[str, Any]:
    aligned = {"size": "S", "depth": 2, "projector_width": 256}
    weight = 2.0 if kind == "autoregressive" else 0.5
    task: dict[str, Any] = {
        "kind": kind,
        "model": MODEL,
        "tokenizer": str(folder / "tokenizer"),
        "repa": {**aligned, "teacher": str(folder / "dino.pth"), "weight": weight},
    }
    if kind == "diffusion":
        # On images these numbers would be measured when the run begins.
        task["latents"] = {"mean": [0.0] * 4, "std": [0.5] * 4}
    return {
        "kind": "train",
        "name": kind,
        "output": str(output),
        "steps": steps,
        "task": task,
        "optim": {"generator": {"lr": 1e-4}},
        "strategy": {"kind": "torch"},
        "log_every_steps": 1,
        "ema_decay": None,
        "checkpoint": {"every_steps": 100_000},
    }


if __name__ == "__main__":
    main()
