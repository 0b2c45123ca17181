"""Activation checkpointing, in place, so that parameter names in checkpoints stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from data_pipelines.errors import UserError


def recompute_activations(modules: Mapping[str, nn.Module]) -> None:
    """Activation checkpointing of every network that is made of blocks.

    Raises:
        UserError: none is.
    """
    if not sum(checkpoint_blocks(module) for module in modules.values()):
        raise UserError(
            "strategy.activation_checkpointing: no network of this task has blocks in a list;"
            " set it to false and lower micro_batch_size instead"
        )


def checkpoint_blocks(module: nn.Module) -> int:
    """Make every block of the outermost module lists forget its activations.

    Returns:
        Number of blocks.
    """
    count = 0
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                if any(True for _ in block.parameters()):
                    block.forward = _recomputed(block, block.forward)
                    count += 1
        else:
            count += checkpoint_blocks(child)
    return count


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
