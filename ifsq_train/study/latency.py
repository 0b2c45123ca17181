"""Numbers of the stage `cost`: what a quantizer costs over another one, in parameters and time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.config.study import CostStage
from ifsq_train.models.autoencoder import Tokenizer

_WARM_UP = 2
_MORE_ALONE = 10
"""Calls of the quantizer alone for each of the whole step; it is a thousand times shorter."""


def measure_cost(config: CostStage) -> dict[str, Any]:
    """A tokenizer's training step and its quantizer alone, against the same with the reference.

    The two take turns, one call each and in changing order, on one thread, and only the
    processor time of that thread is counted, so that other work on the machine hardly matters.
    The ratio is the median over rounds of the paired times.

    Returns:
        ``extra_parameters``; ``step_ratio`` and ``quantizer_ratio`` (forward and backward pass,
        over those of the reference); ``step_ms``, ``quantizer_ms`` of the quantizer itself;
        ``quantizer_share``, its part of the step.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _measured(config)
    finally:
        torch.set_num_threads(threads)


def _measured(config: CostStage) -> dict[str, Any]:
    torch.manual_seed(config.seed)
    network = build_tokenizer(config.model).train()
    other = build_tokenizer(config.model.model_copy(update={"quantizer": config.reference})).train()
    for part in (network, other):
        part.quantize.measure_use = False
    shape = (config.batch_size, 3, config.image_size, config.image_size)
    images = torch.rand(shape) * 2.0 - 1.0
    with torch.no_grad():
        latents = [one.quant_conv(one.encoder(images)) for one in (network, other)]
    rounds = config.rounds
    step, step_other = _paired(lambda: _step(network, images), lambda: _step(other, images), rounds)
    alone, alone_other = _paired(
        lambda: _quantizer(network, latents[0]),
        lambda: _quantizer(other, latents[1]),
        _MORE_ALONE * rounds,
    )
    return {
        "extra_parameters": _parameters(network) - _parameters(other),
        "step_ratio": _ratio(step, step_other),
        "quantizer_ratio": _ratio(alone, alone_other),
        "step_ms": 1000.0 * statistics.median(step),
        "quantizer_ms": 1000.0 * statistics.median(alone),
        "quantizer_share": statistics.median(alone) / statistics.median(step),
    }


def _step(network: Tokenizer, images: Tensor) -> None:
    reconstruction, _ = network(images)
    (reconstruction - images).square().mean().backward()
    network.zero_grad(set_to_none=True)


def _quantizer(network: Tokenizer, latents: Tensor) -> None:
    leaf = latents.detach().requires_grad_(True)
    network.quantize(leaf).latents.sum().backward()


def _paired(
    first: Callable[[], None], second: Callable[[], None], rounds: int
) -> tuple[list[float], list[float]]:
    """Processor seconds of both, call by call."""
    times: tuple[list[float], list[float]] = ([], [])
    for place in range(_WARM_UP + rounds):
        for which in (0, 1) if place % 2 else (1, 0):
            began = time.thread_time()
            (first, second)[which]()
            if place >= _WARM_UP:
                times[which].append(time.thread_time() - began)
    return times


def _ratio(first: list[float], second: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def _parameters(network: Tokenizer) -> int:
    return sum(one.numel() for one in network.parameters())
