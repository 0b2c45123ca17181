"""Which of a checkpoint's weights a network gets, and what is said of young averages."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import pytest
import torch

from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.artifacts.trained import load_tokenizer
from tests.support.written_runs import TOKENIZER, recipe, tokenizer_run, write_run


@pytest.mark.parametrize(("wanted", "offset"), [("live", 0.0), ("averaged", 0.25)])
def test_weights_and_buffers_go_together(
    tmp_path: Path, wanted: Literal["live", "averaged"], offset: float
) -> None:
    """An average's running statistics belong to it: those of the live weights would be others'."""
    tokenizer_run(tmp_path, 3)
    torch.manual_seed(3)
    task = {"kind": "tokenizer", "model": TOKENIZER, "adversarial": None}
    config = recipe(
        task, {"kind": "images", "view": {"kind": "raw", "image_size": 16}}, "autoencoder"
    )
    expected = build_tokenizer(config.task.model).state_dict()
    found = load_tokenizer(tmp_path, wanted)
    assert found.weights == wanted
    assert not found.network.training
    parameters = {name for name, _ in found.network.named_parameters()}
    assert any(v.is_floating_point() for n, v in expected.items() if n not in parameters)
    for name, value in found.network.state_dict().items():
        moved = value.is_floating_point()
        assert torch.equal(value, expected[name] + offset if moved else expected[name]), name
        assert not value.requires_grad


@pytest.mark.parametrize(("updates", "said"), [(10, 1), (3000, 0)])
def test_young_averages_are_mentioned_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, updates: int, said: int
) -> None:
    task = {"kind": "tokenizer", "model": TOKENIZER, "adversarial": None}
    view = {"kind": "raw", "image_size": 16}
    config = recipe(task, {"kind": "images", "view": view}, "autoencoder")
    config = config.model_copy(update={"ema_decay": 0.99, "ema_warmup": False})
    write_run(tmp_path, config, "autoencoder", build_tokenizer(config.task.model), {}, updates)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            load_tokenizer(tmp_path)
            load_tokenizer(tmp_path, "live")
    assert caplog.text.count("90.4 % of the averaged weights are those the run began with") == said
