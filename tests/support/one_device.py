"""Finds tensors that were made on the wrong device, on a machine with a CPU only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class OneDevice(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as CUDA does.

    To be used with tensors of the device ``meta``, whose own operations take any others. Numbers
    without dimensions may stay on the CPU, as with CUDA.
    """

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        devices = {leaf.device.type for leaf in leaves if leaf.dim() > 0}
        assert len(devices) < 2, f"{func} of tensors on {sorted(devices)}"
        return func(*args, **(kwargs or {}))


def on(device: str, values: Any) -> bool:
    """Whether all tensors among `values` are there."""
    leaves = [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
    return bool(leaves) and all(leaf.device == torch.device(device) for leaf in leaves)
