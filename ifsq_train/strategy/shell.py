"""What all engines have in common: networks by name, precision, learning rate and counters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from typing_extensions import override

from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.distributed.context import RunContext
from ifsq_train.models.precision import autocast
from ifsq_train.strategy.base import frozen
from ifsq_train.strategy.optimizers import lr_factor


class EngineShell(ABC):
    """Base of the strategies: everything that does not depend on the engine."""

    def __init__(self, config: StrategyConfig, context: RunContext) -> None:
        self._config = config
        self._context = context
        self._bare: dict[str, nn.Module] = {}
        self._optim: Mapping[str, OptimConfig] = {}
        self._steps: dict[str, int] = {}
        self._total_steps = 0

    @abstractmethod
    def _for_update(self, name: str, *, last_micro_batch: bool) -> nn.Module:
        """The wrapped network, told whether this micro-batch reduces its gradients."""

    @contextmanager
    @override
    def updating(self, name: str, *, last_micro_batch: bool) -> Iterator[Mapping[str, nn.Module]]:
        others = {key: module for key, module in self._bare.items() if key != name}
        wrapped = self._for_update(name, last_micro_batch=last_micro_batch)
        with frozen(list(others.values())):
            yield {**others, name: wrapped}

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast over fp32 parameters, or nothing."""
        return autocast(self._context.device, self._config.precision)

    def _set_lr(self, name: str, optimizer: torch.optim.Optimizer) -> float:
        """The learning rate of the next update of `name`, set and returned."""
        optim = self._optim[name]
        lr = optim.lr * lr_factor(optim, self._steps[name], self._total_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    def optimizer_steps(self, name: str) -> int:
        """Updates that the network's optimizer has made."""
        return self._steps[name]

    def module(self, name: str) -> nn.Module:
        """The network itself, without its engine."""
        return self._bare[name]
