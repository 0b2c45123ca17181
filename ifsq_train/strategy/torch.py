"""Plain torch: one process, or DistributedDataParallel over several."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.distributed.context import RunContext
from ifsq_train.strategy.base import StepStats
from ifsq_train.strategy.fragments import Fragment, split_fragments, whole_fragments
from ifsq_train.strategy.optimizers import build_optimizer, create_state
from ifsq_train.strategy.shell import EngineShell


class TorchStrategy(EngineShell):
    """Data parallel with replicated parameters and optimizer state."""

    def __init__(
        self, config: StrategyConfig, context: RunContext, *, skip_nonfinite: bool = False
    ) -> None:
        super().__init__(config, context)
        self._skip_nonfinite = skip_nonfinite
        self._wrapped: dict[str, nn.Module] = {}
        self._optimizers: dict[str, torch.optim.Optimizer] = {}

    def prepare(
        self, modules: Mapping[str, nn.Module], optim: Mapping[str, OptimConfig], total_steps: int
    ) -> None:
        """Move to the device, wrap in DDP where there are several workers."""
        self._optim, self._total_steps = optim, total_steps
        for name, module in modules.items():
            module.to(self._context.device)
            self._bare[name] = module
            self._wrapped[name] = self._wrap(module)
            self._optimizers[name] = build_optimizer(module, optim[name])
            self._steps[name] = 0
            create_state(self._optimizers[name], module.parameters())

    def _wrap(self, module: nn.Module) -> nn.Module:
        if self._context.world_size == 1:
            return module
        # Buffers are not broadcast: every engine leaves them to the rank that computed them.
        wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False)
        if self._config.communication == "bf16":
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
        return wrapped

    def _for_update(self, name: str, *, last_micro_batch: bool) -> nn.Module:
        wrapped = self._wrapped[name]
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.require_backward_grad_sync = last_micro_batch
        return wrapped

    def backward(self, name: str, loss: Tensor) -> None:
        """Gradients add up in `.grad`; DDP reduces them with the last micro-batch."""
        del name
        loss.backward()

    def step(self, name: str) -> StepStats:
        """Clip, update and zero the gradients; what happened."""
        optim, optimizer = self._optim[name], self._optimizers[name]
        parameters = list(self._bare[name].parameters())
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        lr = self._set_lr(name, optimizer)
        # The comparison makes the host wait for the device, so a GPU run does it only if asked to.
        looks = self._skip_nonfinite or norm.device.type == "cpu"
        if looks and not math.isfinite(float(norm)):
            optimizer.zero_grad(set_to_none=True)
            return StepStats(float(norm), lr, applied=False)
        if optim.max_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, optim.max_grad_norm, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self._steps[name] += 1
        return StepStats(float(norm) if looks else norm, lr)

    def owned_fragments(self, name: str) -> list[Fragment]:
        """Rank r owns the r-th of world_size near-equal pieces of every parameter."""
        whole = self.loadable_fragments(name)
        return split_fragments(whole, self._context.rank, self._context.world_size)

    def loadable_fragments(self, name: str) -> list[Fragment]:
        """Every rank fills every parameter."""
        return whole_fragments(self._bare[name], self._optimizers[name])

    def finish_loading(self, name: str, optimizer_steps: int) -> None:
        """Weights are already in place; set the counters Adam's bias correction needs."""
        self._steps[name] = optimizer_steps
        for state in self._optimizers[name].state.values():
            state["step"].fill_(optimizer_steps)

    def describe(self) -> dict[str, object]:
        """The engine, for the run's result."""
        world = dist.get_world_size() if dist.is_initialized() else 1
        return {"strategy": "torch", "zero_stage": None, "world_size": world}
