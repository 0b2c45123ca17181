"""Linear layers whose matrix products are in 8 bits; parameters and their gradients stay fp32.

Each factor of a product is scaled by one number so that its largest value fits (e4m3 for inputs and
weights, e5m2 for gradients, which need the range more than the digits). The scales are taken anew
from every tensor: nothing is remembered between steps, so nothing is saved in checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16
"""Every side of a product must be a multiple of it for the hardware."""
_VALUES, _GRADIENTS = torch.float8_e4m3fn, torch.float8_e5m2


class Float8Linear(nn.Linear):
    """`nn.Linear` in float8 under bf16 autocast while training; plain otherwise."""

    def forward(self, input: Tensor) -> Tensor:
        """Float [..., D] -> bf16 [..., E]."""
        device = input.device.type
        rows = input.numel() // input.shape[-1]
        low = torch.is_autocast_enabled(device) and torch.is_grad_enabled()
        if not low or rows % MULTIPLE:
            return super().forward(input)
        out = _Product.apply(input.flatten(0, -2), self.weight)
        assert isinstance(out, Tensor)
        out = out.unflatten(0, input.shape[:-1])
        return out if self.bias is None else out + self.bias.to(out.dtype)


def fits_float8(layer: nn.Module) -> bool:
    """Whether a layer is a plain linear one with sides the hardware takes."""
    return (
        type(layer) is nn.Linear
        and layer.in_features % MULTIPLE == 0
        and layer.out_features % MULTIPLE == 0
    )


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            low_x, low_weight = _round(x, _VALUES), _round(weight, _VALUES)
            ctx.save_for_backward(*low_x, *low_weight)
            ctx.dtypes = x.dtype, weight.dtype
            return _multiply(low_x, (low_weight[0].t(), low_weight[1]))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, x_scale, weight, weight_scale = ctx.saved_tensors
        by_x = by_weight = None
        with torch.autocast(x.device.type, enabled=False):
            gradient, scale = _round(grad_outputs[0], _GRADIENTS)
            if ctx.needs_input_grad[0]:
                found = _multiply((gradient, scale), (_by_column(weight), weight_scale))
                by_x = found.to(ctx.dtypes[0])
            if ctx.needs_input_grad[1]:
                turned = gradient.t().contiguous()
                found = _multiply((turned, scale), (_by_column(x), x_scale))
                by_weight = found.to(ctx.dtypes[1])
        return by_x, by_weight


Scaled = tuple[Tensor, Tensor]
"""Float8 values, and the fp32 scalar that they are multiplied with."""


def _round(x: Tensor, dtype: torch.dtype) -> Scaled:
    """Values scaled to the whole range of a float8 type; zeros stay zeros."""
    wide = x.detach().float()
    most = torch.finfo(dtype).max
    scale = wide.abs().amax().clamp_min(1e-12) / most
    return (wide / scale).clamp(-most, most).to(dtype), scale


def _by_column(x: Tensor) -> Tensor:
    """The same matrix, stored column by column, as the second factor has to be."""
    return x.t().contiguous().t()


def _multiply(left: Scaled, right: Scaled) -> Tensor:
    """bf16 product of float8 [N, K] and [K, M]."""
    return torch._scaled_mm(
        left[0], right[0], scale_a=left[1], scale_b=right[1], out_dtype=torch.bfloat16
    )


def reference_product(x: Tensor, weight: Tensor) -> Tensor:
    """What `Float8Linear` computes, with the rounded values multiplied in fp32."""
    (low_x, x_scale), (low_weight, weight_scale) = _round(x, _VALUES), _round(weight, _VALUES)
    return F.linear(low_x.float() * x_scale, low_weight.float() * weight_scale)
