"""Making a convolutional network quicker where it is only used, not trained.

Two things: images and weights with channels last, which the kernels of CPUs and GPUs want, and on
a CPU weights rearranged for its kernels once instead of in every call. Names, parameters and
fingerprints stay as they are, and results equal up to the order of sums. See
tests/benchmarks/models/encode.py.
"""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.models.plain import plain_paths

Network = TypeVar("Network", bound=nn.Module)


def optimize_for_inference(network: Network, *, compiled: bool = False) -> Network:
    """Prepare a network for calls without gradients; the same object comes back, in eval mode.

    Args:
        network: changed in place. Give it images with channels last.
        compiled: also fuse norms and activations with torch.compile, which takes a minute at the
            first call and wants a C++ compiler.
    """
    network.eval()
    if plain_paths():
        return network
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    for module in network.modules():
        if type(module) is nn.Conv2d and not isinstance(module.forward, _PackedConv):
            module.forward = _PackedConv(module)  # pyright: ignore[reportAttributeAccessIssue]
    if compiled:
        network.compile()
    return network


def channels_last(images: Tensor) -> Tensor:
    """The same values [B, C, H, W] in the layout the kernels want."""
    if plain_paths() or images.dim() != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


class _PackedConv:
    """Forward of a convolution that keeps its weights in the CPU kernel's own order.

    They are packed anew when the weights or the size of the input change, and not used while
    gradients are recorded, under autocast or on other devices.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        self._conv = conv
        self._made_for: tuple[object, ...] | None = None
        self._packed: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _PackedConv:
        return _PackedConv(copy.deepcopy(self._conv, memo))

    def __call__(self, x: Tensor) -> Tensor:
        conv = self._conv
        if not self._usable(x):
            return F.conv2d(
                x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
            )
        padding, stride, dilation = list(conv.padding), list(conv.stride), list(conv.dilation)
        weight = conv.weight.detach()
        # Tensors made in inference mode have no version; they cannot be trained further either.
        version = 0 if conv.weight.is_inference() else conv.weight._version
        wanted = (weight.data_ptr(), version, x.shape)
        if self._packed is None or wanted != self._made_for:
            self._packed = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, stride, dilation, conv.groups, list(x.shape)
            )
            self._made_for = wanted
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._packed, conv.bias, padding, stride, dilation, conv.groups, "none", [], ""
        )

    def _usable(self, x: Tensor) -> bool:
        return (
            x.device.type == "cpu"
            and x.dtype == self._conv.weight.dtype == torch.float32
            and len(x) > 0
            and not torch.is_grad_enabled()
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        )
