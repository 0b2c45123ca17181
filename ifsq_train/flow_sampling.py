"""Integrating a flow from noise to latents.

Only fixed time grids: with an adaptive step a sample would depend on the others of its batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from ifsq_train.losses.flow_matching import shift_times
from ifsq_train.models.dit import DiT

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Takes latents [B, ...] and a time, a scalar on the CPU; gives the velocity [B, ...]."""
Method = Literal["euler", "midpoint", "heun3"]

# Explicit Runge-Kutta methods: per stage its time and the weights of the earlier stages; then the
# weights of all stages in the step.
_STAGES: dict[Method, tuple[list[tuple[float, tuple[float, ...]]], tuple[float, ...]]] = {
    "euler": ([(0.0, ())], (1.0,)),
    "midpoint": ([(0.0, ()), (1 / 2, (1 / 2,))], (0.0, 1.0)),
    "heun3": (
        [(0.0, ()), (1 / 3, (1 / 3,)), (2 / 3, (0.0, 2 / 3))],
        (1 / 4, 0.0, 3 / 4),
    ),
}


def time_grid(num_steps: int, shift: float = 0.0) -> Tensor:
    """Times fp32 [num_steps + 1] from 0 to 1; a shift s > 0 maps t to s t / (1 + (s - 1) t)."""
    return shift_times(torch.linspace(0.0, 1.0, num_steps + 1), shift)


def integrate(
    velocity: Velocity, noise: Tensor, times: Tensor, method: Method = "euler"
) -> list[Tensor]:
    """States at every time, the first being `noise`; float [B, ...] each."""
    stages, weights = _STAGES[method]
    states = [noise]
    for start, end in pairwise(times):
        step = end - start
        slopes: list[Tensor] = []
        for place, shares in stages:
            x = states[-1]
            for share, slope in zip(shares, slopes, strict=True):
                x = x + step * share * slope if share else x
            slopes.append(velocity(x, start + place * step))
        change = sum(
            weight * slope for weight, slope in zip(weights, slopes, strict=True) if weight
        )
        states.append(states[-1] + step * change)
    return states


@dataclass(frozen=True)
class FlowSamplingConfig:
    """How latents are drawn.

    Attributes:
        num_steps: of the time grid.
        method: integrator.
        shift: see `time_grid`; 0 is off.
        cfg_scale: guidance s: ``uncond + s (cond - uncond)``; 1 turns guidance off.
        cfg_start: guide only from this time on.
        guided_channels: first channels that are guided; None guides all. The released code
            guides 3, whatever the latents have.
    """

    num_steps: int = 250
    method: Method = "euler"
    shift: float = 0.0
    cfg_scale: float = 1.0
    cfg_start: float = 0.0
    guided_channels: int | None = None


def guided_velocity(model: DiT, labels: Tensor, config: FlowSamplingConfig) -> Velocity:
    """The model's velocity for these labels, with classifier-free guidance.

    Args:
        model: in eval mode.
        labels: int64 [B], on the model's device.
        config: guidance.
    """
    null = torch.full_like(labels, model.num_classes)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        times = time.to(x.device).expand(len(x))
        if config.cfg_scale == 1.0 or float(time) < config.cfg_start:
            return model(x, times, labels).prediction.float()
        both = model(torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null]))
        conditional, unconditional = both.prediction.float().chunk(2)
        guided = unconditional + config.cfg_scale * (conditional - unconditional)
        channels = config.guided_channels
        if channels is None:
            return guided
        return torch.cat([guided[:, :channels], conditional[:, channels:]], 1)

    return velocity


@torch.no_grad()
def sample_latents(model: DiT, labels: Tensor, noise: Tensor, config: FlowSamplingConfig) -> Tensor:
    """Draw latents.

    Args:
        model: in eval mode.
        labels: int64 [B], on the model's device.
        noise: standard normal float32 [B, C, h, w]; decides the sample.
        config: steps and guidance.

    Returns:
        float32 [B, C, h, w], in the normalization the model was trained on.
    """
    assert not model.training, "dropout would make every draw another one"
    times = time_grid(config.num_steps, config.shift)
    velocity = guided_velocity(model, labels, config)
    return integrate(velocity, noise, times, config.method)[-1]
