"""Steps between the matrix products of the transformers, each as one autograd node with its
derivative by hand.

For CPUs. Written plainly they are most of the memory traffic of a step: autograd keeps every
product in between and visits all of them again. Here the input and one number per row are kept,
gradients of parts of a tensor are written where they belong instead of being joined, and everything
in between is fp32 whatever autocast says. `IFSQ_PLAIN=1`, torch.compile and other devices take the
plain formulas, which a compiler fuses better.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ifsq_train.models.cpu_bf16 import fast_bf16
from ifsq_train.models.plain import cpu_formulas


def fused_paths(x: Tensor) -> bool:
    """Whether x goes through these functions; a compiler fuses the plain formulas itself."""
    return cpu_formulas(x.device) and not torch.compiler.is_compiling()


def matmul_dtype(x: Tensor) -> torch.dtype:
    """What the next matrix product rounds x to."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def norm_modulate(x: Tensor, weight: Tensor, eps: float, scale: Tensor, shift: Tensor) -> Tensor:
    """``rms_norm(x) * weight * (1 + scale) + shift`` in the precision of the next product.

    Args:
        x: float [B, T, D].
        weight: [D].
        eps: added to the mean square.
        scale, shift: [B, 1, D].
    """
    out = _NormModulate.apply(x, weight, eps, scale, shift, matmul_dtype(x))
    assert isinstance(out, Tensor)
    return out


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    """1 / root mean square over the last axis of fp32 x, which is kept."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()


def _norm_backward(gradient: Tensor, normed: Tensor, inverse: Tensor) -> Tensor:
    """By x of ``normed = x inverse``; both fp32 inputs are overwritten."""
    share = (gradient * normed).mean(-1, keepdim=True)
    return gradient.sub_(normed.mul_(share)).mul_(inverse)


class _NormModulate(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, eps: float, scale: Tensor, shift: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:  # fmt: skip
        wide = x.float()
        inverse = _inverse_rms(wide, eps)
        factor = (scale.float() + 1.0).mul_(weight)
        ctx.save_for_backward(x, inverse, weight, scale)
        ctx.shift_dtype = shift.dtype
        return torch.addcmul(shift.float(), wide * inverse, factor).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight, scale = ctx.saved_tensors
        gradient = grad_outputs[0].float()
        normed = x.float() * inverse
        by_shift = gradient.sum(1, keepdim=True)
        by_factor = (gradient * normed).sum(1, keepdim=True)
        factor = scale.float() + 1.0
        by_weight = (by_factor * factor).sum((0, 1)).to(weight.dtype)
        by_x = _norm_backward(gradient * factor.mul_(weight), normed, inverse)
        by_scale = by_factor.mul_(weight).to(scale.dtype)
        return by_x.to(x.dtype), by_weight, None, by_scale, by_shift.to(ctx.shift_dtype), None


def fused_in_bf16(x: Tensor) -> bool:
    """Whether LlamaGen's steps go through `norm_scale` and `silu_times`: training in bf16 on a CPU,
    where that is asked for. Otherwise the plain formulas stay, whose bits recorded runs have.
    """
    bf16 = fast_bf16() and matmul_dtype(x) == torch.bfloat16
    return bf16 and torch.is_grad_enabled() and fused_paths(x)


def norm_scale(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``rms_norm(x) * weight`` of float [..., D] in the precision of the next product."""
    out = _NormScale.apply(x, weight, eps, matmul_dtype(x))
    assert isinstance(out, Tensor)
    return out


class _NormScale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
        wide = x.float()
        inverse = _inverse_rms(wide, eps)
        ctx.save_for_backward(x, inverse, weight)
        return (wide * inverse).mul_(weight).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        gradient = grad_outputs[0].float()
        normed = x.float() * inverse
        by_weight = (gradient * normed).flatten(0, -2).sum(0).to(weight.dtype)
        by_x = _norm_backward(gradient * weight, normed, inverse)
        return by_x.to(x.dtype), by_weight, None, None


def silu_times(gate: Tensor, value: Tensor) -> Tensor:
    """``silu(gate) * value`` of two float tensors of one shape."""
    out = _SiluTimes.apply(gate, value)
    assert isinstance(out, Tensor)
    return out


class _SiluTimes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gate, value)
        return torch.nn.functional.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = grad_outputs
        gate, value = ctx.saved_tensors
        by_value = torch.nn.functional.silu(gate).mul_(gradient)
        return torch.ops.aten.silu_backward(gradient * value, gate), by_value


def gated_add(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """``x + gate * branch`` in x's precision; x, branch float [B, T, D], gate [B, 1, D]."""
    out = _GatedAdd.apply(x, gate, branch)
    assert isinstance(out, Tensor)
    return out


class _GatedAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
        ctx.save_for_backward(gate, branch)
        return torch.addcmul(x, gate.to(x.dtype), branch.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,) = grad_outputs
        gate, branch = ctx.saved_tensors
        by_gate = (gradient * branch.to(gradient.dtype)).sum(1, keepdim=True)
        by_branch = gradient * gate.to(gradient.dtype)
        return gradient, by_gate.to(gate.dtype), by_branch.to(branch.dtype)


def swiglu(x: Tensor) -> Tensor:
    """``silu(gate) * value`` of float [..., 2 F], gate first."""
    out = _SwiGlu.apply(x)
    assert isinstance(out, Tensor)
    return out


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        gate, value = x.chunk(2, -1)
        return torch.nn.functional.silu(gate).mul_(value)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        (gradient,) = grad_outputs
        (x,) = ctx.saved_tensors
        gate, value = x.chunk(2, -1)
        by_x = torch.empty_like(x)
        by_gate, by_value = by_x.chunk(2, -1)
        torch.mul(gradient, torch.nn.functional.silu(gate), out=by_value)
        by_gate.copy_(torch.ops.aten.silu_backward(gradient * value, gate))
        return by_x


def norm_rotate(x: Tensor, weight: Tensor, eps: float, turns: Tensor) -> Tensor:
    """Queries or keys normed by head and turned.

    Args:
        x: float [B, T, H, K].
        weight: [K].
        eps: added to the mean square.
        turns: complex64 [T, K / 2], what adjacent channel pairs are multiplied with.

    Returns:
        [B, H, T, K] in x's precision.
    """
    out = _NormRotate.apply(x, weight, eps, turns)
    assert isinstance(out, Tensor)
    return out


def _turn(x: Tensor, turns: Tensor) -> None:
    """Multiply adjacent channels of fp32 [B, T, H, K] in place."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    pairs.mul_(turns.view(1, len(turns), 1, -1))


class _NormRotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, turns: Tensor) -> Tensor:
        wide = _own_float(x)
        inverse = _inverse_rms(wide, eps)
        wide.mul_(inverse).mul_(weight)
        _turn(wide, turns)
        ctx.save_for_backward(x, inverse, weight, turns)
        return wide.transpose(1, 2).to(x.dtype, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight, turns = ctx.saved_tensors
        gradient = _own_float(grad_outputs[0].transpose(1, 2))
        _turn(gradient, turns.conj())
        normed = _own_float(x).mul_(inverse)
        by_weight = (gradient * normed).sum((0, 1, 2)).to(weight.dtype)
        by_x = _norm_backward(gradient.mul_(weight), normed, inverse)
        return by_x.to(x.dtype), by_weight, None, None


def _own_float(x: Tensor) -> Tensor:
    """A dense fp32 copy, to be written to."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
