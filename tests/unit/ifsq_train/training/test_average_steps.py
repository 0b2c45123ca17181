"""The average of weights and running statistics, update by update, with its rising decay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.strategy.torch import TorchStrategy
from ifsq_train.training.ema import WeightAverage


@pytest.mark.parametrize("warmup", [True, False])
def test_every_update_by_hand(warmup: bool) -> None:
    torch.manual_seed(0)
    module = nn.BatchNorm1d(3)
    context = InProcessContext(device=torch.device("cpu"))
    strategy = TorchStrategy(StrategyConfig(kind="torch"), context)
    strategy.prepare({"net": module}, {"net": OptimConfig(lr=0.1)}, 10)
    average = WeightAverage(strategy, "net", 0.25, warmup)
    names = ["weight", "bias", "running_mean", "running_var"]
    expected = {name: module.state_dict()[name].clone() for name in names}
    for update in range(6):
        module(torch.randn(8, 3) * 3 + 1).square().sum().backward()
        strategy.step("net")
        average.update()
        decay = min(0.25, (1 + update) / (10 + update)) if warmup else 0.25
        for name in names:
            live = module.state_dict()[name]
            expected[name] = decay * expected[name] + (1 - decay) * live
    found = {piece.name: values for piece, values in average.pieces()} | average.buffers()
    assert set(found) == set(names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-7)
        assert not torch.allclose(found[name], module.state_dict()[name], rtol=1e-4)
