"""Making a network quicker where it is only used, not trained.

Two things: images and weights with channels last, which the kernels of CPUs and GPUs want, and on
a CPU the weights of convolutions and linear layers rearranged, and under autocast rounded, for its
kernels once instead of in every call. Names, parameters and fingerprints stay as they are, and
results equal up to the order of sums. See tests/benchmarks/models/encode.py and
tests/benchmarks/generators/sampling.py.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ifsq_train.models.plain import plain_paths
from ifsq_train.models.token_head import TokenHead

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
        packed = _PACKED.get(type(module))
        on_cpu = all(parameter.device.type == "cpu" for parameter in module.parameters(False))
        if packed is not None and on_cpu and not isinstance(module.forward, _Packed):
            module.forward = packed(module)  # pyright: ignore[reportAttributeAccessIssue]
    if compiled:
        network.compile()
    return network


def channels_last(images: Tensor) -> Tensor:
    """The same values [B, C, H, W] in the layout the kernels want."""
    if plain_paths() or images.dim() != 4:
        return images
    return images.contiguous(memory_format=torch.channels_last)


class _Packed(ABC):
    """Forward of a layer that keeps its weights in the CPU kernel's own order and precision.

    They are packed anew when the weights or the size of the input change, and not used while
    gradients are recorded or on other devices.
    """

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._made_for: tuple[object, ...] | None = None
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Packed:
        return type(self)(copy.deepcopy(self._layer, memo))

    def __call__(self, x: Tensor, *others: Any, **named: Any) -> Any:
        dtype = None if others or named else self._precision(x)
        if dtype is None:
            return type(self._layer).forward(self._layer, x, *others, **named)
        layer = self._layer
        weight = layer.weight.detach()
        # Tensors made in inference mode have no version; they cannot be trained further either.
        version = 0 if layer.weight.is_inference() else layer.weight._version
        wanted = (weight.data_ptr(), version, dtype, x.shape)
        if self._weight is None or wanted != self._made_for:
            self._weight = self._pack(weight.to(dtype), x)
            self._bias = None if layer.bias is None else layer.bias.detach().to(dtype)
            self._made_for = wanted
        return self._run(x.to(dtype), self._weight, self._bias)

    @abstractmethod
    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        """Weights in the order the kernel wants for inputs of x's shape."""

    @abstractmethod
    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer on packed weights."""

    def _precision(self, x: Tensor) -> torch.dtype | None:
        """What to compute in, which is what torch would; None where packing is of no use."""
        weight = self._layer.weight
        usable = (
            x.device.type == "cpu"
            and x.numel() > 0
            and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling()
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
        )
        if not usable:
            return None
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        elif x.dtype == weight.dtype:
            dtype = x.dtype
        else:
            return None
        if dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return dtype
        return dtype if dtype == torch.float32 else None


class _PackedConv(_Packed):
    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        conv = self._layer
        return torch.ops.mkldnn._reorder_convolution_weight(
            weight, list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups,
            list(x.shape),
        )  # fmt: skip

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        conv = self._layer
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, list(conv.padding), list(conv.stride), list(conv.dilation),
            conv.groups, "none", [], "",
        )  # fmt: skip


class _PackedLinear(_Packed):
    def _pack(self, weight: Tensor, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[-1]
        return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def _run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


_PACKED: dict[type[nn.Module], type[_Packed]] = {
    nn.Conv2d: _PackedConv,
    nn.Linear: _PackedLinear,
    TokenHead: _PackedLinear,
}
