"""Quicker bf16 on CPUs, for runs that ask for it: results agree with torch's up to rounding.

One part is in `fused` and `transformer`, which ask `fast_bf16`. The other, here, is for CPUs that
have no instructions for bf16. torch has loops for those that take seven times as long as the same
product in fp32. The factors, which are bf16 already, are widened, multiplied by the fp32 kernel,
and the result is rounded to bf16: the same values up to the order of sums.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ifsq_train.models.plain import plain_paths

_PRODUCTS = (
    *("mm", "addmm", "bmm", "baddbmm"),
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


def has_bf16_instructions() -> bool:
    """Whether this CPU multiplies bf16 itself (AVX-512 at least, where torch's kernels start)."""
    supported: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return torch.backends.mkldnn.is_available() and bool(supported())


_fast = False
"""A plain global, since torch.compile cannot trace context variables."""


def choose_fast_bf16(fast: bool) -> None:
    """Whether this process computes bf16 by the quicker ways from now on; at first it does not.

    Other types keep the kernels they had.
    """
    global _fast
    _fast = fast
    if fast and hasattr(torch.library, "get_kernel") and not has_bf16_instructions():
        _install()


def fast_bf16() -> bool:
    """Whether the quicker ways are chosen; `IFSQ_PLAIN=1`: never."""
    return _fast and not plain_paths()


@cache
def _install() -> torch.library.Library:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that kernels are replaced, which is meant
        for name in _PRODUCTS:
            library.impl(name, _widened(name), "CPU", with_keyset=True, allow_override=True)
    return library


def _widened(name: str) -> Callable[..., Any]:
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def product(keys: Any, *args: Any, **kwargs: Any) -> Any:
        if not fast_bf16() or not any(_is_bf16(part) for part in args):
            return kernel.call_boxed(keys, *args, **kwargs)
        wide = [part.float() if _is_bf16(part) else part for part in args]
        return tree_map(_narrow, kernel.call_boxed(keys, *wide, **kwargs))

    return product


def _is_bf16(value: object) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def _narrow(value: Any) -> Any:
    return value.to(torch.bfloat16) if isinstance(value, Tensor) else value
