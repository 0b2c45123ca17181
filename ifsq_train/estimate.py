"""What a training will need, from arithmetic: memory, FLOPs, communication, days.

Nothing is allocated and nothing runs on a GPU: networks are built on torch's meta device, which
knows shapes only, and one sample is pushed through them to count operations and activations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ifsq_train.build import build_task
from ifsq_train.config import TokenDataConfig, TrainConfig
from ifsq_train.dry_run import FlopCounter

FP32_BYTES = 4
DEFAULT_EFFICIENCY = 0.35
"""Reached part of the peak that the days are computed with; see docs."""


@dataclass(frozen=True)
class Estimate:
    """For one recipe and one shape of cluster.

    Attributes:
        parameters: trainable parameters by network.
        flops_per_sample: forward and backward, all updates of an average step together.
        flops_per_step: of the global batch.
        state_bytes: per worker by ZeRO stage: parameters, gradients, moments and averages.
        communication_bytes: sent by one worker per step, by ZeRO stage.
        workers: nodes times GPUs per node.
        micro_batch_size: samples one worker takes at once.
        micro_batches: per worker and step.
        days: of the whole run, or None where the peak is not given.
    """

    parameters: dict[str, int]
    flops_per_sample: float
    flops_per_step: float
    state_bytes: dict[int, float]
    communication_bytes: dict[int, float]
    workers: int
    micro_batch_size: int
    micro_batches: int
    days: float | None


def estimate(
    config: TrainConfig,
    *,
    workers: int,
    peak_flops: float | None,
    efficiency: float = DEFAULT_EFFICIENCY,
    codebook_sizes: tuple[int, ...] | None = None,
    grid: tuple[int, int] | None = None,
) -> Estimate:
    """Arithmetic for a recipe.

    Args:
        config: the recipe; its dataset need not exist.
        workers: GPUs in all.
        peak_flops: of one GPU in the recipe's precision, FLOP/s.
        efficiency: expected part of the peak, in (0, 1].
        codebook_sizes, grid: of the token dataset; generators need them.

    Raises:
        UserError: the recipe's parts do not fit.
    """
    with torch.device("meta"):
        task = build_task(config.task, config.seed, codebook_sizes, grid)
    networks = task.modules()
    parameters = {name: count_parameters(module) for name, module in networks.items()}
    flops = {name: 3.0 * value for name, value in forward_flops(config, task, grid).items()}
    per_sample = average_flops(config, task, flops)
    batch = config.data.global_batch_size
    share = -(-batch // workers)
    micro = min(config.strategy.micro_batch_size or share, share)
    count = -(-share // micro)
    averaged = set(task.averaged()) if config.ema_decay is not None else set()
    total = sum(parameters.values())
    kept = sum(parameters[name] for name in averaged)
    days = None
    if peak_flops is not None:
        seconds = config.steps * batch * per_sample / (workers * peak_flops * efficiency)
        days = seconds / 86_400
    return Estimate(
        parameters,
        per_sample,
        per_sample * batch,
        {stage: state_bytes(total, kept, stage, workers) for stage in range(4)},
        {stage: communication_bytes(total, stage, workers, count) for stage in range(4)},
        workers,
        micro,
        count,
        days,
    )


def count_parameters(module: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def state_bytes(parameters: int, averaged: int, stage: int, workers: int) -> float:
    """Bytes per worker of parameters, gradients, two moments and averages, all fp32.

    Stages 1 and 2 hold an fp32 master copy of their part beside the whole parameters.
    """
    weights, gradients, moments = parameters, parameters, 2.0 * parameters
    if stage == 0:
        return FP32_BYTES * (weights + gradients + moments + averaged / workers)
    moments /= workers
    masters = parameters / workers
    if stage >= 2:
        gradients /= workers
    if stage == 3:
        weights /= workers
    return FP32_BYTES * (weights + masters + gradients + moments + averaged / workers)


def communication_bytes(parameters: int, stage: int, workers: int, micro_batches: int) -> float:
    """Bytes one worker sends per step, with ring algorithms.

    A ring all-reduce of P values sends 2 P (W - 1) / W per worker, a reduce-scatter or an
    all-gather half of it. Stages 0 and 1 reduce once per step; stage 2 reduces after each
    micro-batch; stage 3 also gathers the parameters for each forward and backward pass.
    """
    one = FP32_BYTES * parameters * (workers - 1) / workers
    if stage == 0:
        return 2 * one
    if stage == 1:
        return 2 * one
    if stage == 2:
        return (micro_batches + 1) * one
    return 3 * micro_batches * one


def average_flops(config: TrainConfig, task: Any, flops: dict[str, float]) -> float:
    """Mean over the last updates of the schedule, where every network takes its turn.

    A network that another one's loss passes through costs a forward and half a backward there;
    that is left out, as are frozen feature networks, so GANs are underestimated by about a third.
    """
    last = range(max(0, config.steps - 2), config.steps)
    return sum(flops[name] for step in last for name in task.updates(step)) / len(last)


def forward_flops(config: TrainConfig, task: Any, grid: tuple[int, int] | None) -> dict[str, float]:
    """Operations of one sample's forward pass by network, counted on the meta device."""
    result = {}
    for name, module in task.modules().items():
        with torch.device("meta"), torch.no_grad(), FlopCounter() as counter:
            module.eval()(*_inputs(config, grid))
        result[name] = float(counter.total)
    return result


def _inputs(config: TrainConfig, grid: tuple[int, int] | None) -> tuple[torch.Tensor, ...]:
    if isinstance(config.data, TokenDataConfig):
        assert grid is not None
        tokens = torch.zeros(1, grid[0] * grid[1], dtype=torch.int64, device="meta")
        return tokens, torch.zeros(1, dtype=torch.int64, device="meta")
    size = config.data.view.image_size
    return (torch.zeros(1, 3, size, size, device="meta"),)
