"""Memory from shapes: what a pass on a fake GPU held, and what it is made of."""

from __future__ import annotations

from typing import Any

import torch

from ifsq_train.config import TrainConfig
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.training.fake_step import LiveBytes, activation_bytes

SPEC = GeneratorSpec((8, 8), (64,), 4)


def recipe(**strategy: Any) -> TrainConfig:
    shape = {"size": "custom", "num_layers": 3, "num_heads": 2, "dim": 64, "num_classes": 10}
    return TrainConfig.model_validate(
        {
            "kind": "train",
            "name": "x",
            "output": "x",
            "steps": 10,
            "data": {"kind": "tokens", "url": "none", "global_batch_size": 8},
            "task": {"kind": "autoregressive", "model": shape},
            "optim": {"generator": {"lr": 1e-3}},
            "strategy": strategy,
        }
    )


def test_memory_grows_with_the_samples_and_shrinks_with_recomputing() -> None:
    one, two = (activation_bytes(recipe(precision="bf16"), SPEC, count) for count in (8, 16))
    less = activation_bytes(recipe(precision="bf16", activation_checkpointing=True), SPEC, 16)
    assert one is not None
    assert two is not None
    assert less is not None
    assert 1.8 < two / one < 2.1
    assert less < 0.8 * two
    # Every layer keeps its input and the products at least, in fp32 and bf16.
    assert one > 8 * 64 * 3 * 64 * (4 + 2 * 4)


def test_live_bytes_are_counted_until_they_are_freed() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a + 1
        del a
        c = b.view(10, 100)
        assert live.alive == 4000
        assert c.shape == (10, 100)
    assert live.peak == 8000
