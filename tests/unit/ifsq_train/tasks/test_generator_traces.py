"""The generators' tasks, engine and average together take the steps the released training takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    OptimConfig,
    StrategyConfig,
)
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.base import StepStats
from ifsq_train.strategy.torch import TorchStrategy
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from ifsq_train.training.ema import WeightAverage
from tests.support.goldens import Golden, assert_relative

SHAPE = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 64, "num_classes": 10}


class RecordedRandom(BatchRandom):
    """Draws that give the recorded times and noise, and drop no label."""

    noise: Tensor
    times: Tensor

    def uniform(self, stream: str, shape: Any = ()) -> Tensor:
        assert (stream, shape) == ("label_dropout", ())
        return torch.ones(len(self.positions))

    def normal(self, stream: str, shape: Any = ()) -> Tensor:
        drawn = {"flow_noise": self.noise, "flow_time": torch.logit(self.times)}[stream]
        assert drawn.shape == (len(self.positions), *shape)
        return drawn


class Trainer:
    """One task under the torch engine, as the loop drives it."""

    def __init__(self, task: Any, optim: OptimConfig) -> None:
        self.task = task
        self.strategy = TorchStrategy(
            StrategyConfig(kind="torch"), InProcessContext(device=torch.device("cpu"))
        )
        self.strategy.prepare(task.modules(), {GENERATOR: optim}, 100)

    def step(self, batch: Batch, random: BatchRandom) -> tuple[dict[str, Tensor], StepStats]:
        info = StepInfo(0, random, 1.0, 1, self.strategy)
        with self.strategy.updating(GENERATOR, last_micro_batch=True) as models:
            output = self.task.loss(GENERATOR, models, batch, info)
            self.strategy.backward(GENERATOR, output.loss)
        return output.metrics, self.strategy.step(GENERATOR)


def drift(step: int) -> float:
    """fp32 summation order is amplified from step to step."""
    return 1e-4 if step < 4 else 1e-2


def test_llamagen_with_alignment(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "llamagen_train_trace")
    settings = golden.config["model"]
    model = LlamaGen(
        num_layers=settings["n_layer"],
        num_heads=settings["n_head"],
        dim=settings["dim"],
        codebook_sizes=[settings["vocab_size"]],
        grid=(4, 4),
        num_classes=settings["num_classes"],
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
        projection_dims=settings["z_dims"],
        projection_depth=settings["encoder_depth"],
        projector_width=settings["projector_dim"],
    )
    model.load_state_dict(golden.under("sd."))
    config = AutoregressiveTaskConfig.model_validate({"kind": "autoregressive", "model": SHAPE})
    task = AutoregressiveTask(config, model, None, Alignment(None, golden.config["lambda_repa"]))
    trainer = Trainer(task, OptimConfig(lr=1e-3, betas=(0.9, 0.95), weight_decay=0.05))
    average = WeightAverage(trainer.strategy, GENERATOR, golden.config["ema"])
    for step in range(golden.config["steps"]):
        tokens, labels = golden["tokens"][step], golden["class_ids"][step]
        positions = np.arange(len(tokens))
        batch = Batch(tokens, labels, positions, golden["repa_target"][step])
        terms, stats = trainer.step(batch, RecordedRandom(0, step, positions))
        average.update()
        assert_relative(terms["cross_entropy"], golden["trace.ce"][step], drift(step))
        assert_relative(terms["alignment"], golden["trace.proj"][step], drift(step))
        norm = torch.tensor(stats.grad_norm)
        assert_relative(norm, golden["trace.grad_norm"][step], drift(step))
    averaged = {piece.name: values.view(piece.shape) for piece, values in average.pieces()}
    assert_relative(model.tok_embeddings.weight, golden["final.tok_embeddings"], 1e-4)
    assert_relative(averaged["tok_embeddings.weight"], golden["final.ema_tok_embeddings"], 1e-4)
    assert_relative(model.norm.weight, golden["final.norm"], 1e-4)


def test_dit_with_alignment(golden_dir: Path) -> None:
    golden = Golden(golden_dir, "dit_train_trace")
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
    model.load_state_dict(Golden(golden_dir, "dit").under("sd."))
    config = DiffusionTaskConfig.model_validate({"kind": "diffusion", "model": SHAPE})
    channels = settings["in_channels"]
    unscaled = LatentStatistics((0.0,) * channels, (1.0,) * channels, 0)
    alignment = Alignment(None, golden.config["proj_coef"])
    task = DiffusionTask(config, model, LatentInputs(unscaled, model.grid), alignment)
    trainer = Trainer(task, OptimConfig(lr=1e-3, betas=(0.9, 0.95), max_grad_norm=None))
    for step in range(golden.config["steps"]):
        latents = golden["x1"][step]
        positions = np.arange(len(latents))
        random = RecordedRandom(0, step, positions)
        object.__setattr__(random, "noise", golden["x0"][step])
        object.__setattr__(random, "times", golden["t"][step])
        batch = Batch(latents, golden["y"][step], positions, golden["repa_target"][step])
        terms, stats = trainer.step(batch, random)
        for name, recorded in {"velocity": "mse", "direction": "cos", "alignment": "proj"}.items():
            assert_relative(terms[name], golden[f"trace.{recorded}"][step], 1e-4)
        assert_relative(torch.tensor(stats.grad_norm), golden["trace.grad_norm"][step], 1e-4)
    assert_relative(model.x_embedder.proj.weight, golden["final.x_embedder"], 1e-3)
    assert_relative(model.final_layer.linear.weight, golden["final.linear"], 1e-3)
