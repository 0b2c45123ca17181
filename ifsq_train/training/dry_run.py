"""One forward and backward pass before step 1: finds shape and memory errors early, counts FLOPs.

It runs on the bare networks before an engine takes them, so it changes nothing: gradients are
dropped, buffers (running statistics) are put back, and no random state that a step reads is moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from data_pipelines.errors import UserError
from ifsq_train.config import TrainConfig
from ifsq_train.config.shares import num_micro_batches
from ifsq_train.data.base import TrainData
from ifsq_train.data.batch import Batch
from ifsq_train.distributed.context import RunContext
from ifsq_train.metrics.flops import FlopCounter
from ifsq_train.models.precision import autocast
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.base import frozen
from ifsq_train.strategy.network_options import change_networks
from ifsq_train.strategy.synced_batch_norm import sync_batch_norms
from ifsq_train.tasks.base import Autocast, StepInfo, TrainTask
from ifsq_train.training.kernels import choose_kernels, compile_networks


@dataclass(frozen=True)
class DryRun:
    """What a trial pass measured.

    Attributes:
        flops: floating-point operations of forward and backward for one sample, by network.
        peak_bytes: most device memory allocated, without optimizer state; 0 on the CPU.
    """

    flops: dict[str, float]
    peak_bytes: int


def prepare_networks(
    config: TrainConfig, context: RunContext, data: TrainData, task: TrainTask
) -> dict[str, float]:
    """Device, options and a trial pass, before an engine takes the networks.

    Returns:
        FLOPs of forward and backward for one sample by network; empty without a dry run.
    """
    choose_kernels(context.device, config.strategy)
    for module in task.auxiliary().values():
        module.to(context.device).requires_grad_(False).eval()
    if config.strategy.synced_batch_norm:
        for module in task.modules().values():
            sync_batch_norms(module)
    change_networks(config.strategy, task.modules(), context.device)
    flops: dict[str, float] = {}
    if config.dry_run:
        count = num_micro_batches(config, context.world_size)
        batch = data.load(0, context.rank, context.world_size).part(count - 1, count)
        flops = dry_run(config, context, task, batch).flops
    compile_networks(config.strategy, task, context.device.type)
    return flops


class _Precision:
    """The part of a strategy that a loss needs."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        self._precision, self._device = config.strategy.precision, device

    def autocast(self) -> AbstractContextManager[object]:
        """As the run's strategy will do it."""
        return autocast(self._device, self._precision)


def dry_run(config: TrainConfig, context: RunContext, task: TrainTask, batch: Batch) -> DryRun:
    """Forward and backward of one micro-batch for every network the task ever updates (collective).

    Args:
        config: the recipe.
        context: this worker's place.
        task: with networks that no engine has wrapped yet.
        batch: one micro-batch on the host, as the first step will see it.

    Raises:
        UserError: out of memory, or shapes of data and networks that do not fit.
    """
    device = context.device
    networks = task.modules()
    for module in networks.values():
        module.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    precision = _Precision(config, device)
    flops = {}
    with _buffers_kept(list(networks.values())):
        for name, step in _first_updates(config, task):
            try:
                total = _try_update(name, step, networks, task, batch.to(device), config, precision)
            except torch.cuda.OutOfMemoryError as error:
                raise UserError(
                    f"dry run: out of memory with {len(batch)} samples at once: {error}. Lower"
                    " strategy.micro_batch_size or set strategy.activation_checkpointing"
                ) from error
            flops[name] = total / len(batch)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return DryRun(flops, peak)


def _first_updates(config: TrainConfig, task: TrainTask) -> list[tuple[str, int]]:
    """For every network a step in which it is updated."""
    found = []
    for network in task.modules():
        steps = (step for step in _candidate_steps(config) if network in task.updates(step))
        step = next(steps, None)
        if step is not None:
            found.append((network, step))
    return found


def _candidate_steps(config: TrainConfig) -> list[int]:
    """The last steps first: a GAN's discriminator joins late, and costs most then."""
    last = config.steps - 1
    return [step for step in (last, last - 1, 0) if step >= 0]


def _try_update(
    name: str,
    step: int,
    networks: Mapping[str, nn.Module],
    task: TrainTask,
    batch: Batch,
    config: TrainConfig,
    precision: Autocast,
) -> int:
    random = BatchRandom(config.seed, step, batch.positions)
    info = StepInfo(step, random, 1.0, 1, precision)
    others = [module for key, module in networks.items() if key != name]
    parameters = [p for p in networks[name].parameters() if p.requires_grad]
    try:
        with _eager(config, batch.inputs.device.type), FlopCounter() as counter, frozen(others):
            try:
                task.loss(name, networks, batch, info).loss.backward()
            except (RuntimeError, ValueError, IndexError) as error:
                if isinstance(error, torch.cuda.OutOfMemoryError):
                    raise
                raise UserError(
                    f"dry run: '{name}' cannot take inputs of shape {tuple(batch.inputs.shape)}:"
                    f" {' '.join(str(error).split())}"
                ) from error
        return counter.total
    finally:
        for parameter in parameters:
            parameter.grad = None


def _eager(config: TrainConfig, device: str) -> AbstractContextManager[object]:
    """Run eagerly where the strategy compiles: compiled code hides the operations to be counted."""
    compiled = config.strategy.compiles_on(device)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


@contextmanager
def _buffers_kept(modules: list[nn.Module]) -> Iterator[None]:
    kept = [(buffer, buffer.clone()) for module in modules for buffer in module.buffers()]
    training = [(part, part.training) for module in modules for part in module.modules()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.copy_(value)
        for part, mode in training:
            part.training = mode
