"""What a recipe's strategy changes in networks before an engine takes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from data_pipelines.errors import UserError
from ifsq_train.config import StrategyConfig
from ifsq_train.models.float8 import Float8Linear, fits_float8
from ifsq_train.strategy.activation_checkpointing import recompute_activations

_FLOAT8_CAPABILITY = (8, 9)
"""Ada and Hopper: the first GPUs that multiply float8."""


def change_networks(
    config: StrategyConfig, modules: Mapping[str, nn.Module], device: torch.device
) -> None:
    """Precision of the residual stream, float8 and activation checkpointing, in place.

    Raises:
        UserError: an option that none of the networks, or not the device, can follow.
    """
    if config.residual == "bf16":
        low_precision_residuals(modules)
    if config.float8:
        use_float8(modules, device)
    if config.activation_checkpointing:
        selective = config.activation_checkpointing == "selective"
        recompute_activations(modules, selective=selective)


def low_precision_residuals(modules: Mapping[str, nn.Module]) -> None:
    """The stream between the blocks of transformers in bf16.

    Raises:
        UserError: no network has one.
    """
    with_stream = [module for module in modules.values() if hasattr(module, "residual_dtype")]
    if not with_stream:
        raise UserError(
            "strategy.residual: bf16: no network of this task has a residual stream of its own;"
            " set it to fp32"
        )
    for module in with_stream:
        stream: Any = module
        stream.residual_dtype = torch.bfloat16


def use_float8(modules: Mapping[str, nn.Module], device: torch.device) -> None:
    """Linear layers of blocks in float8, in place; names and parameters stay.

    Raises:
        UserError: the device has no float8, or no network has such a layer.
    """
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < _FLOAT8_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise UserError(f"strategy.float8: {name} multiplies no float8; set it to false")
    layers = [layer for module in modules.values() for layer in _block_layers(module)]
    if not layers:
        raise UserError(
            "strategy.float8: no network of this task has linear layers in blocks whose sides are"
            " multiples of 16; set it to false"
        )
    for layer in layers:
        layer.__class__ = Float8Linear


def _block_layers(module: nn.Module) -> Iterator[nn.Linear]:
    """Linear layers inside lists of blocks, each once."""
    seen: set[int] = set()
    for parent in module.modules():
        if not isinstance(parent, nn.ModuleList):
            continue
        for layer in parent.modules():
            if isinstance(layer, nn.Linear) and fits_float8(layer) and id(layer) not in seen:
                seen.add(id(layer))
                yield layer
