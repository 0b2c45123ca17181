"""Random numbers that are drawn while a batch is loaded are those a step would draw."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.config import AutoregressiveTaskConfig, DiffusionTaskConfig, StrategyConfig
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.models.dit import DiT
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.torch import TorchStrategy
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import StepInfo, with_draws
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import LatentInputs


class Once(dict[str, torch.Tensor]):
    """Draws that fail a step which asks for any other."""

    def __contains__(self, name: object) -> bool:
        assert super().__contains__(name), f"{name} was not drawn ahead"
        return True


@pytest.mark.parametrize("kind", ["autoregressive", "diffusion"])
def test_draws_that_come_with_a_batch_are_those_of_the_step(kind: str) -> None:
    """Loss and gradients have the same bits, in micro-batches too, and nothing is drawn twice."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": 1, "num_heads": 2, "dim": 16}
    model = {"size": "custom", **shape, "class_dropout": 0.5}
    if kind == "diffusion":
        config = DiffusionTaskConfig.model_validate({"kind": kind, "model": model})
        scaling = LatentStatistics((0.0,) * 4, (1.0,) * 4, 0)
        network: Any = DiT(**shape, latent_channels=4, grid=(4, 4))
        task: Any = DiffusionTask(config, network, LatentInputs(scaling, (4, 4)))
        inputs = torch.randn(6, 4, 4, 4)
    else:
        settings = AutoregressiveTaskConfig.model_validate({"kind": kind, "model": model})
        network = LlamaGen(**shape, codebook_sizes=[8], grid=(2, 2))
        task, inputs = AutoregressiveTask(settings, network), torch.randint(8, (6, 4))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    plain = Batch(inputs, torch.arange(6), np.arange(10, 16))
    ahead = with_draws(plain, task, BatchRandom(3, 5, plain.positions))
    assert ahead.draws
    found = []
    for batch in (plain, ahead):
        losses = []
        for index in range(2):
            part = batch.part(index, 2)
            random = BatchRandom(3, 5, part.positions, 0, index, part.draws)
            if part.draws:
                random = replace(random, ahead=Once(part.draws))
            info = StepInfo(5, random, 1.0, 2, TorchStrategy(StrategyConfig(), InProcessContext()))
            output = task.loss("generator", task.modules(), part, info)
            output.loss.backward()
            losses.append(output.loss.detach())
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        found.append([*losses, *gradients])
        network.zero_grad()
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
