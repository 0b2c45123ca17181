"""Muon for matrices, AdamW for the rest, with the released DiT training's settings.

The update of a matrix is its Nesterov momentum made nearly orthogonal by five Newton-Schulz
iterations in bf16, scaled so that its size resembles AdamW's (released muon.py; PARITY 9).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_ADAMW_RMS = 0.2
"""Typical root mean square of an AdamW update, which Muon's is scaled to."""


def is_muon_parameter(parameter: Tensor) -> bool:
    """All parameters with exactly two dimensions, embedding tables and heads included."""
    return parameter.ndim == 2


def empty_state(
    parameter: Tensor, *, squares: bool, counter_device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """What an optimizer keeps of a parameter before its first update, by torch's names.

    Args:
        parameter: of any shape.
        squares: whether a second moment is kept; Muon keeps none.
        counter_device: where the number of updates (fp32 scalar) lies.
    """
    state = {
        "step": torch.zeros((), dtype=torch.float32, device=counter_device),
        "exp_avg": torch.zeros_like(parameter.detach()),
    }
    if squares:
        state["exp_avg_sq"] = torch.zeros_like(parameter.detach())
    return state


def orthogonalize(matrix: Tensor) -> Tensor:
    """Nearest orthogonal matrix, roughly: singular values end up between about 0.7 and 1.2.

    Args:
        matrix: [rows, columns], any float dtype.

    Returns:
        bf16 [rows, columns].
    """
    first, second, third = _COEFFICIENTS
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.T if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters with two dimensions, AdamW for the others.

    Args:
        params: parameters or groups of them; groups may set ``weight_decay``.
        lr: learning rate of both.
        momentum: of Muon.
        betas, eps: of AdamW.
        weight_decay: decoupled, of both.
    """

    def __init__(
        self,
        params: Any,
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.95, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps}
        super().__init__(params, {**defaults, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self._state_of(parameter)
                state["step"] += 1
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                update = _muon_update if is_muon_parameter(parameter) else _adamw_update
                parameter.add_(update(parameter.grad, state, group).to(parameter.dtype))

    def _state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state.update(empty_state(parameter, squares=not is_muon_parameter(parameter)))
        return state


def _muon_update(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    momentum = group["momentum"]
    average = state["exp_avg"].mul_(momentum).add_(gradient)
    update = orthogonalize(gradient.add(average, alpha=momentum))
    return update * -(group["lr"] * _ADAMW_RMS * math.sqrt(max(gradient.shape)))


def _adamw_update(gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    first, second = group["betas"]
    count = float(state["step"])
    average = state["exp_avg"].lerp_(gradient, 1.0 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1.0 - second)
    scale = math.sqrt(1.0 - second**count) / (1.0 - first**count)
    return average / (square.sqrt() + group["eps"]) * (-group["lr"] * scale)
