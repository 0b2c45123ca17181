"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ifsq_train.config import OptimConfig
from ifsq_train.strategy.muon import Muon, empty_state, is_muon_parameter


def lr_factor(optim: OptimConfig, update: int, total_updates: int) -> float:
    """Learning rate of update number `update` (from 0) over `optim.lr`, in [0, 1]."""
    if update < optim.warmup_steps:
        return (update + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return 1.0
    if optim.schedule == "wsd":
        length = max(1.0, optim.decay_ratio * total_updates)
        left = min(1.0, max(0.0, (total_updates - update) / length))
        return optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * left
    done = (update - optim.warmup_steps) / max(1, total_updates - optim.warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
    return optim.final_lr_ratio + (1.0 - optim.final_lr_ratio) * cosine


def build_optimizer(module: nn.Module, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW (by the fused kernel, which CPUs have too) or Muon over all trainable parameters."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = _decay_groups(parameters, optim)
    if optim.kind == "muon":
        return Muon(groups, lr=optim.lr, momentum=optim.momentum, betas=optim.betas, eps=optim.eps)
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


def _decay_groups(parameters: list[nn.Parameter], optim: OptimConfig) -> list[dict[str, Any]]:
    """One group, or two where vectors (biases, norms) do not decay."""
    if optim.decay == "all":
        return [{"params": parameters, "weight_decay": optim.weight_decay}]
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": optim.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_state(optimizer: torch.optim.Optimizer, tensors: Iterable[Tensor]) -> None:
    """Give the moments before the first step, so that a checkpoint can be loaded into them."""
    fused = any(group.get("fused") for group in optimizer.param_groups)
    for tensor in tensors:
        squares = not (isinstance(optimizer, Muon) and is_muon_parameter(tensor))
        # The fused kernel keeps its counter on the device.
        device = tensor.device if fused else "cpu"
        optimizer.state[tensor] = empty_state(tensor, squares=squares, counter_device=device)
