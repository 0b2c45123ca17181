"""Activation checkpointing, in place, so that parameter names in checkpoints stay the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from data_pipelines.errors import UserError

_aten = torch.ops.aten
_DEAR = [
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.convolution.default,
    _aten._scaled_mm.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
    _aten._scaled_dot_product_cudnn_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
]
"""What selective checkpointing keeps: operations whose second run would cost arithmetic. The rest
is bound by memory, and its results are most of what a block keeps."""


def recompute_activations(modules: Mapping[str, nn.Module], *, selective: bool = False) -> None:
    """Activation checkpointing of every network that is made of blocks.

    Args:
        modules: the trained networks.
        selective: keep the results of products, convolutions and attention.

    Raises:
        UserError: none is.
    """
    if not sum(checkpoint_blocks(module, selective=selective) for module in modules.values()):
        raise UserError(
            "strategy.activation_checkpointing: no network of this task has blocks in a list;"
            " set it to false and lower micro_batch_size instead"
        )


def checkpoint_blocks(module: nn.Module, *, selective: bool = False) -> int:
    """Make every block of the outermost module lists forget its activations.

    Returns:
        Number of blocks.
    """
    count = 0
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            for block in child:
                if any(True for _ in block.parameters()):
                    block.forward = _recomputed(block, block.forward, selective)
                    count += 1
        else:
            count += checkpoint_blocks(child, selective=selective)
    return count


def _recomputed(
    block: nn.Module, forward: Callable[..., Any], selective: bool
) -> Callable[..., Any]:
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _DEAR)

    def run(*args: Any, **kwargs: Any) -> Any:
        if not block.training:
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, **options, **kwargs)

    return run
