"""The recorded trainings, through the loop itself: only data and first weights are put in."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.plan import SamplePlan
from ifsq_train import train
from ifsq_train.build import build_task
from ifsq_train.config import TrainConfig
from ifsq_train.context import RunContext, TorchrunContext
from ifsq_train.data import positions
from ifsq_train.losses.alignment import alignment_loss
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.tasks.base import Batch, LossOutput, StepInfo

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "ifsq_train" / "models"))
from goldens import Golden


class RecordedData:
    """One recorded batch per step."""

    codebook_sizes = None
    grid = None

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        steps, batch = inputs.shape[:2]
        self.plan = SamplePlan("recorded", [steps * batch], batch, seed=0)
        self._inputs, self._labels = inputs, labels

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's slice of the step's batch."""
        places = positions(self.plan, rank, world_size)
        part = slice(int(places[0]), int(places[-1]) + 1)
        return Batch(self._inputs[step, part], self._labels[step, part], places)

    def describe(self) -> dict[str, Any]:
        """For the run's record."""
        return {"kind": "recorded"}


class PerImageError(nn.Module):
    """The stub that stood for LPIPS in the recording: mean squared error of each image."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """[B, 3, H, W] twice -> [B]."""
        return F.mse_loss(images, targets, reduction="none").mean((1, 2, 3))


class AlignedLlamaGen:
    """LlamaGen with the recorded teacher features; class dropout is in the recorded labels."""

    def __init__(self, model: LlamaGen, targets: Tensor, weight: float) -> None:
        self._model, self._targets, self._weight = model, targets, weight

    def modules(self) -> dict[str, nn.Module]:
        """See TrainTask."""
        return {"generator": self._model}

    def auxiliary(self) -> dict[str, nn.Module]:
        """See TrainTask."""
        return {}

    def updates(self, step: int) -> tuple[str, ...]:
        """See TrainTask."""
        del step
        return ("generator",)

    def averaged(self) -> tuple[str, ...]:
        """See TrainTask."""
        return ("generator",)

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """See TrainTask."""
        output = models[update](batch.inputs, batch.labels)
        entropy = token_cross_entropy(output.logits, batch.inputs)
        targets = self._targets[info.step][torch.from_numpy(batch.positions)]
        alignment = alignment_loss(output.projections, [targets])
        loss = entropy + self._weight * alignment
        metrics = {"ce": entropy.detach(), "proj": alignment.detach(), "loss": loss.detach()}
        return LossOutput(loss, metrics)


def tokenizer_trace(golden: Golden, output: str, strategy: dict[str, Any]) -> tuple:
    """Recipe, data and task of the recorded tokenizer training."""
    settings = golden.config
    network = {
        "quantizer": {"kind": "ifsq", "levels": [17] * 4},
        "channel_multipliers": [1, 1],
        "base_channels": 32,
        "num_res_blocks": 1,
    }
    adversarial = {
        "start_step": settings["disc_start"],
        "weight": settings["disc_weight"],
        "num_layers": settings["disc"]["n_layers"],
        "base_channels": settings["disc"]["ndf"],
    }
    optim = {"lr": settings["lr"], "betas": settings["betas"]}
    config = recipe(
        output,
        strategy | {"synced_batch_norm": True},
        steps=settings["steps"],
        data={"kind": "images", "view": {"kind": "raw", "image_size": golden["x"].shape[-1]}},
        batch=golden["x"].shape[1],
        task={"kind": "tokenizer", "model": network, "adversarial": adversarial},
        optim={
            "autoencoder": optim | {"max_grad_norm": settings["max_norm"]},
            "discriminator": optim | {"max_grad_norm": None},
        },
        ema_decay=settings["ema_decay"],
    )
    task: Any = build_task(config.task, 0)
    task.modules()["autoencoder"].load_state_dict(golden.under("sd."))
    task.modules()["discriminator"].load_state_dict(golden.under("disc."))
    task._perceptual = PerImageError()
    labels = torch.zeros(golden["x"].shape[:2], dtype=torch.int64)
    return config, RecordedData(golden["x"], labels), task


def llamagen_trace(golden: Golden, output: str, strategy: dict[str, Any]) -> tuple:
    """Recipe, data and task of the recorded LlamaGen training."""
    settings = golden.config
    shape = settings["model"]
    model = LlamaGen(
        num_layers=shape["n_layer"],
        num_heads=shape["n_head"],
        dim=shape["dim"],
        codebook_sizes=[shape["vocab_size"]],
        grid=(4, 4),
        num_classes=shape["num_classes"],
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        projection_dims=shape["z_dims"],
        projection_depth=shape["encoder_depth"],
        projector_width=shape["projector_dim"],
    )
    model.load_state_dict(golden.under("sd."))
    optim = {
        "lr": settings["lr"],
        "betas": settings["betas"],
        "weight_decay": settings["weight_decay"],
        "max_grad_norm": settings["clip"],
    }
    config = recipe(
        output,
        strategy,
        steps=settings["steps"],
        data={"kind": "tokens"},
        batch=golden["tokens"].shape[1],
        task={
            "kind": "autoregressive",
            "model": {
                "size": "custom",
                "num_layers": 2,
                "num_heads": 2,
                "dim": 64,
                "num_classes": shape["num_classes"],
            },
        },
        optim={"generator": optim},
        ema_decay=settings["ema"],
    )
    task = AlignedLlamaGen(model, golden["repa_target"], settings["lambda_repa"])
    return config, RecordedData(golden["tokens"], golden["class_ids"]), task


def recipe(
    output: str, strategy: dict[str, Any], *, data: dict[str, Any], batch: int, **rest: Any
) -> TrainConfig:
    """A recipe that logs every step and saves once, at the end."""
    return TrainConfig.model_validate(
        {
            "kind": "train",
            "name": "trace",
            "output": output,
            "log_every_steps": 1,
            "strategy": strategy,
            "data": {"url": "recorded", "global_batch_size": batch, **data},
            **rest,
        }
    )


def smooth_trace(output: str, strategy: dict[str, Any]) -> tuple:
    """Autoencoder without rounding against a discriminator: nothing in it can jump."""
    adversarial = {"start_step": 2, "num_layers": 2, "base_channels": 8, "schedule": "both"}
    network = {
        "quantizer": {"kind": "ae", "num_channels": 4},
        "channel_multipliers": [1, 1],
        "base_channels": 32,
        "num_res_blocks": 1,
    }
    optim = {"lr": 1e-3, "eps": 1e-4}
    config = recipe(
        output,
        strategy | {"synced_batch_norm": True},
        steps=8,
        data={"kind": "images", "view": {"kind": "raw", "image_size": 16}},
        batch=6,
        task={"kind": "tokenizer", "model": network, "adversarial": adversarial},
        optim={"autoencoder": optim, "discriminator": optim | {"max_grad_norm": None}},
        ema_decay=0.9,
    )
    images = torch.rand(8, 6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    labels = torch.zeros(8, 6, dtype=torch.int64)
    return config, RecordedData(images, labels), build_task(config.task, 0)


def run_smooth(output: str, strategy: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of every step of `smooth_trace`."""
    return _run(smooth_trace(output, strategy), TorchrunContext())


TRACES = {"tokenizer": tokenizer_trace, "llamagen": llamagen_trace}


def run_trace(
    golden_folder: str, trace: str, output: str, strategy: dict[str, Any]
) -> list[dict[str, Any]]:
    """The records of every step, as rank 0 logged them."""
    golden = Golden(Path(golden_folder), f"{trace}_train_trace")
    return _run(TRACES[trace](golden, output, strategy), TorchrunContext())


def _run(parts: tuple, context: RunContext) -> list[dict[str, Any]]:
    config, data, task = parts
    replaced: Any = train
    replaced.open_train_data = lambda *_args, **_kwargs: data
    replaced.build_task = lambda *_args: task
    train.run(config, context)
    return read_jsonl(Path(config.output) / "metrics.jsonl")
