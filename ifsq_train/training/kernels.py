"""Which kernels a run computes with: compiled ones, quick ones, or such as repeat every bit."""

from __future__ import annotations

import os

import torch
import torch._dynamo
from torch import nn

from ifsq_train.config import StrategyConfig
from ifsq_train.models.cpu_bf16 import choose_fast_bf16
from ifsq_train.models.token_head import TokenHead
from ifsq_train.tasks.base import TrainTask

_VERSIONS = 64
"""Of one block's code: widths, resolutions, with and without gradients. torch gives up after 8 and
goes on without compiling, which nobody notices."""


def choose_kernels(device: torch.device, config: StrategyConfig) -> None:
    """Settings of the whole process, before the first kernel of a network.

    Args:
        device: of this worker.
        config: deterministic: the same bits in every run of as many workers; else cuDNN may try
            its convolutions and take the quickest, which can be another one next time.
            cpu_kernels: which bf16 a CPU has.
    """
    choose_fast_bf16(device.type == "cpu" and config.cpu_kernels == "fast")
    deterministic = config.deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = deterministic
        torch.backends.cudnn.benchmark = not deterministic


def compile_networks(config: StrategyConfig, task: TrainTask, device: str) -> None:
    """torch.compile as the recipe asks for it: blocks on a GPU by default, or whole networks.

    A block is compiled once for all that have its shapes, a network as a whole; what lies between
    blocks is little.
    """
    if not config.compiles_on(device):
        return
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _VERSIONS)
    for network in task.modules().values():
        if config.compile is True:
            network.compile()
            continue
        compile_blocks(network)
        for part in network.modules():
            if isinstance(part, TokenHead):
                part.compiled = True


def compile_blocks(network: nn.Module) -> int:
    """Compile the innermost blocks in lists, in place; names of parameters stay.

    Returns:
        Number of blocks.
    """
    count = 0
    for parent in network.modules():
        if not isinstance(parent, nn.ModuleList | nn.Sequential):
            continue
        for block in parent:
            inner = any(isinstance(part, nn.ModuleList) for part in block.modules())
            # The compiler passes torch's own containers by: they would stay as they are.
            own = not type(block).__module__.startswith("torch.")
            if own and not inner and any(True for _ in block.children()):
                block.compile(dynamic=False)
                count += 1
    return count
