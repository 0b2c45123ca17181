"""Counts what runs on the fake device."""

from __future__ import annotations

import collections
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

VIEWS = frozenset(
    {
        *("_conj", "_reshape_alias", "_unsafe_view", "alias", "as_strided", "chunk", "detach"),
        *("diagonal", "empty", "empty_like", "empty_strided", "expand", "lift_fresh", "new_empty"),
        *("new_empty_strided", "permute", "reshape", "select", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze"),
        *("view", "view_as_complex", "view_as_real"),
    }
)
"""Operators that start no kernel."""
QUESTIONS = frozenset(
    {
        *("_has_compatible_shallow_copy_type", "device", "dim", "dtype", "is_contiguous"),
        *("is_same_size", "layout", "numel", "result_type", "set_", "size", "storage_offset"),
        *("stride", "sym_numel", "sym_size", "sym_storage_offset", "sym_stride"),
    }
)
WAITS = frozenset({"_local_scalar_dense", "item", "nonzero", "masked_select", "equal"})
"""Operators whose result the host has to wait for."""


class Trace(TorchDispatchMode):
    """Kernels, waits, FLOPs and the largest memory held.

    Attributes:
        kernels: operators that start one, on the device.
        waits: of the host for the device, and copies between them, by what they are.
        flops: of matrix products, convolutions and attention.
        moved: bytes read and written by all kernels.
        peak: bytes alive at once, of everything held or made inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.flops, self.moved = 0, 0.0, 0
        self.waits: collections.Counter[str] = collections.Counter()
        self.alive = self.peak = 0
        self._seen: dict[int, Any] = {}

    def hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._seen:
            return

        def freed(_: object) -> None:
            self.alive -= size
            self._seen.pop(key, None)

        self._seen[key] = weakref.ref(storage, freed)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator on fake tensors and count it."""
        result = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        for tensor in made:
            if tensor.device.type == "cuda":
                self.hold(tensor)
        kinds = {tensor.device.type for tensor in given + made}
        if name in WAITS and "cuda" in kinds:
            self.waits[name] += 1
        if name in ("_to_copy", "copy_") and kinds == {"cpu", "cuda"}:
            self.waits["copy between host and device"] += 1
        if "cuda" in kinds and name not in VIEWS and name not in QUESTIONS:
            formula = flop_registry.get(func._overloadpacket)
            self.flops += formula(*args, **(kwargs or {}), out_val=result) if formula else 0
            self.kernels += 1
            self.moved += sum(t.numel() * t.element_size() for t in given + made)
        return result


class _OneKernelSilu(torch.autograd.Function):
    """As many kernels and tensors as on a GPU; this build would compose the derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.mul(grad_outputs[0], x)


def _flash_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
) -> Tensor:  # fmt: skip
    """What a GPU chooses for bf16, with a mask or without; this build knows no fused kernel."""
    if torch.is_autocast_enabled("cuda"):
        query, key, value = (part.to(torch.bfloat16) for part in (query, key, value))
    fused = query.dtype == torch.bfloat16 and query.dim() == 4
    if not fused:
        return _PLAIN_ATTENTION(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention
    return kernel(query, key, value, dropout_p, is_causal, scale=scale)[0]


_PLAIN_ATTENTION = F.scaled_dot_product_attention


@contextmanager
def kernels_of_a_gpu() -> Iterator[None]:
    """Attention and SiLU as one kernel each way; what they compute is of no use then."""
    before = F.scaled_dot_product_attention, F.silu
    F.scaled_dot_product_attention = _flash_attention
    F.silu = lambda input, inplace=False: _OneKernelSilu.apply(input)  # noqa: ARG005
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.silu = before
