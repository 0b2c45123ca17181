"""A training step as the loop takes it: task, engine, average."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ifsq_train.assembly.strategy import build_strategy
from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.randomness import BatchRandom
from ifsq_train.tasks.base import StepInfo
from ifsq_train.training.ema import WeightAverage
from ifsq_train.training.kernels import choose_kernels, compile_networks


def engine_step(
    task: Any,
    batch: Batch,
    optim: OptimConfig,
    settings: StrategyConfig,
    device: torch.device,
) -> Callable[[], float]:
    """One update of the generator and its average; gives the loss."""
    strategy = build_strategy(settings, InProcessContext(device=device))
    choose_kernels(device, settings)
    compile_networks(settings, task, device.type)
    strategy.prepare(task.modules(), {GENERATOR: optim}, 1000)
    average = WeightAverage(strategy, GENERATOR, 0.9999)

    def step() -> float:
        info = StepInfo(0, BatchRandom(0, 0, batch.positions), 1.0, 1, strategy)
        with strategy.updating(GENERATOR, last_micro_batch=True) as models:
            output = task.loss(GENERATOR, models, batch, info)
            strategy.backward(GENERATOR, output.loss)
        strategy.step(GENERATOR)
        average.update()
        return float(output.metrics["loss"])

    return step
