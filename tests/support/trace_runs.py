"""The recorded trainings, through the loop itself: only data and first weights are put in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from data_pipelines.order.plan import SamplePlan
from data_pipelines.tokens.format import LatentStatistics
from ifsq_train import train
from ifsq_train.assembly.task import build_task
from ifsq_train.config import TrainConfig
from ifsq_train.data.base import positions
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.context import RunContext, TorchrunContext
from ifsq_train.metrics.jsonl import read_jsonl
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.randomness import BatchRandom
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from tests.support.goldens import Golden


class RecordedData:
    """One recorded batch per step."""

    def __init__(self, inputs: Tensor, labels: Tensor, features: Tensor | None = None) -> None:
        steps, batch = inputs.shape[:2]
        self.plan = SamplePlan("recorded", [steps * batch], batch, seed=0)
        self._inputs, self._labels, self._features = inputs, labels, features

    def load(self, step: int, rank: int, world_size: int) -> Batch:
        """The rank's slice of the step's batch."""
        places = positions(self.plan, rank, world_size)
        part = slice(int(places[0]), int(places[-1]) + 1)
        features = None if self._features is None else self._features[step, part]
        return Batch(self._inputs[step, part], self._labels[step, part], places, features)

    def describe(self) -> dict[str, Any]:
        """For the run's record."""
        return {"kind": "recorded"}


class PerImageError(nn.Module):
    """The stub that stood for LPIPS in the recording: mean squared error of each image."""

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """[B, 3, H, W] twice -> [B]."""
        return F.mse_loss(images, targets, reduction="none").mean((1, 2, 3))


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
        ema_warmup=False,
    )
    task: Any = _tokenizer_task(config)
    task.modules()["autoencoder"].load_state_dict(golden.under("sd."))
    task.modules()["discriminator"].load_state_dict(golden.under("disc."))
    task._perceptual = PerImageError()
    labels = torch.zeros(golden["x"].shape[:2], dtype=torch.int64)
    return config, RecordedData(golden["x"], labels), task


SHAPE = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 64, "num_classes": 10}


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
        # Dropped labels are in the recorded ones.
        task={"kind": "autoregressive", "model": SHAPE | {"class_dropout": 0.0}},
        optim={"generator": optim},
        ema_decay=settings["ema"],
        ema_warmup=False,
    )
    alignment = Alignment(None, settings["lambda_repa"])
    task: Any = config.task
    data = RecordedData(golden["tokens"], golden["class_ids"], golden["repa_target"])
    return config, data, AutoregressiveTask(task, model, None, alignment)


class RecordedRandom(BatchRandom):
    """Draws that give the recorded times and noise, and drop no label."""

    golden: Golden

    def uniform(self, stream: str, shape: Any = ()) -> Tensor:
        """See BatchRandom."""
        assert (stream, shape) == ("label_dropout", ())
        return torch.ones(len(self.positions))

    def normal(self, stream: str, shape: Any = ()) -> Tensor:
        """See BatchRandom."""
        del shape
        step = min(self.step, len(self.golden["t"]) - 1)
        recorded = {
            "flow_noise": self.golden["x0"][step],
            "flow_time": torch.logit(self.golden["t"][step]),
        }
        return recorded[stream][torch.from_numpy(self.positions)]


def dit_trace(golden: Golden, output: str, strategy: dict[str, Any]) -> tuple:
    """Recipe, data and task of the recorded DiT training."""
    settings = golden.config["model"]
    model = DiT(
        num_layers=settings["depth"],
        num_heads=settings["num_heads"],
        dim=settings["hidden_size"],
        latent_channels=settings["in_channels"],
        grid=(settings["input_size"],) * 2,
        num_classes=settings["num_classes"],
        projection_dims=settings["z_dims"],
        projection_depth=settings["encoder_depth"],
        projector_width=settings["projector_dim"],
    )
    model.load_state_dict(Golden(golden.folder, "dit").under("sd."))
    config = recipe(
        output,
        strategy,
        steps=golden.config["steps"],
        data={"kind": "tokens"},
        batch=golden["x1"].shape[1],
        task={"kind": "diffusion", "model": SHAPE},
        optim={"generator": {"lr": 1e-3, "betas": (0.9, 0.95), "max_grad_norm": None}},
        ema_decay=0.99,
        ema_warmup=False,
    )
    channels = settings["in_channels"]
    latents = LatentInputs(LatentStatistics((0.0,) * channels, (1.0,) * channels, 0), model.grid)
    task: Any = config.task
    alignment = Alignment(None, golden.config["proj_coef"])
    replaced: Any = train
    replaced.BatchRandom = type("Recorded", (RecordedRandom,), {"golden": golden})
    data = RecordedData(golden["x1"], golden["y"], golden["repa_target"])
    return config, data, DiffusionTask(task, model, latents, alignment)


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


def _tokenizer_task(config: TrainConfig) -> Any:
    nothing: Any = None
    return build_task(config, nothing, nothing)


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
        steps=6,
        data={"kind": "images", "view": {"kind": "raw", "image_size": 16}},
        batch=6,
        task={"kind": "tokenizer", "model": network, "adversarial": adversarial},
        optim={"autoencoder": optim, "discriminator": optim | {"max_grad_norm": None}},
        ema_decay=0.9,
        ema_warmup=False,
    )
    images = torch.rand(8, 6, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    labels = torch.zeros(8, 6, dtype=torch.int64)
    return config, RecordedData(images, labels), _tokenizer_task(config)


def run_smooth(output: str, strategy: dict[str, Any]) -> list[dict[str, Any]]:
    """The records of every step of `smooth_trace`."""
    return _run(smooth_trace(output, strategy), TorchrunContext())


TRACES = {"tokenizer": tokenizer_trace, "llamagen": llamagen_trace, "dit": dit_trace}


def run_trace(
    golden_folder: str, trace: str, output: str, strategy: dict[str, Any]
) -> list[dict[str, Any]]:
    """The records of every step, as rank 0 logged them."""
    golden = Golden(Path(golden_folder), f"{trace}_train_trace")
    replaced: Any = train
    replaced.BatchRandom = BatchRandom
    return _run(TRACES[trace](golden, output, strategy), TorchrunContext())


def _run(parts: tuple, context: RunContext) -> list[dict[str, Any]]:
    config, data, task = parts
    replaced: Any = train
    replaced.open_train_data = lambda *_args, **_kwargs: data
    replaced.build_task = lambda *_args: task
    train.run(config, context)
    return read_jsonl(Path(config.output) / "metrics.jsonl")
