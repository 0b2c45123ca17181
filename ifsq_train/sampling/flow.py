"""Integrating a flow from noise to latents.

On a fixed time grid, or with steps chosen for each sample by itself: a solver that chooses one step
for its whole batch, as usual ones do, makes a sample depend on the others drawn beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from data_pipelines.errors import UserError
from ifsq_train.losses.flow_matching import expand_time, shift_times
from ifsq_train.models.dit import DiT

Velocity = Callable[[Tensor, Tensor], Tensor]
"""Takes latents [B, ...] and a time on the CPU, a scalar or [B]; gives the velocity [B, ...]."""
FixedMethod = Literal["euler", "midpoint", "heun", "heun3"]
Method = Literal["euler", "midpoint", "heun", "heun3", "dopri5"]

# Explicit Runge-Kutta methods: per stage its time and the weights of the earlier stages; then the
# weights of all stages in the step.
_STAGES: dict[FixedMethod, tuple[list[tuple[float, tuple[float, ...]]], tuple[float, ...]]] = {
    "euler": ([(0.0, ())], (1.0,)),
    "midpoint": ([(0.0, ()), (1 / 2, (1 / 2,))], (0.0, 1.0)),
    "heun": ([(0.0, ()), (1.0, (1.0,))], (1 / 2, 1 / 2)),
    "heun3": (
        [(0.0, ()), (1 / 3, (1 / 3,)), (2 / 3, (0.0, 2 / 3))],
        (1 / 4, 0.0, 3 / 4),
    ),
}


def time_grid(num_steps: int, shift: float = 0.0) -> Tensor:
    """Times fp32 [num_steps + 1] from 0 to 1; a shift s > 0 maps t to s t / (1 + (s - 1) t)."""
    return shift_times(torch.linspace(0.0, 1.0, num_steps + 1), shift)


def integrate(
    velocity: Velocity, noise: Tensor, times: Tensor, method: FixedMethod = "euler"
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


# Dormand and Prince 1980: per stage its time and the weights of the earlier stages. The last row is
# the fifth-order step itself; the error is the difference to the fourth-order weights.
_DOPRI5: list[tuple[float, tuple[float, ...]]] = [
    (1 / 5, (1 / 5,)),
    (3 / 10, (3 / 40, 9 / 40)),
    (4 / 5, (44 / 45, -56 / 15, 32 / 9)),
    (8 / 9, (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729)),
    (1.0, (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656)),
    (1.0, (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84)),
]
_DOPRI5_ERROR = (
    35 / 384 - 5179 / 57600,
    0.0,
    500 / 1113 - 7571 / 16695,
    125 / 192 - 393 / 640,
    -2187 / 6784 + 92097 / 339200,
    11 / 84 - 187 / 2100,
    -1 / 40,
)
_SAFETY, _SHRINK, _GROW, _FIRST_STEP, _MAX_STEPS = 0.9, 0.2, 10.0, 0.01, 10_000


def integrate_adaptive(
    velocity: Velocity, noise: Tensor, *, rtol: float = 1e-3, atol: float = 1e-6
) -> Tensor:
    """The state at time 1 by the Dormand-Prince pair, step sizes of each sample its own.

    Samples that have arrived are carried along with steps of 0 until the last has.

    Args:
        velocity: called with times [B].
        noise: float [B, ...], the states at time 0.
        rtol, atol: a step's root-mean-square error is at most 1 in units of
            ``atol + rtol max(|before|, |after|)``.

    Raises:
        RuntimeError: after 10,000 steps.
        UserError: a velocity is not finite.
    """
    x, t = noise, torch.zeros(len(noise), dtype=torch.float64)
    size = torch.full_like(t, _FIRST_STEP)
    first = velocity(x, t.float())
    for _ in range(_MAX_STEPS):
        step = torch.minimum(size, 1.0 - t)
        after, last, error = _dopri5_step(velocity, x, t, step, first)
        scale = atol + rtol * torch.maximum(x.abs(), after.abs())
        ratio = (error / scale).flatten(1).square().mean(1).sqrt().cpu().double()
        if not bool(ratio.isfinite().all()):
            where = int((~ratio.isfinite()).nonzero()[0])
            raise UserError(
                f"dopri5: the network's velocity is not finite at time {float(t[where]):.4f} for"
                f" {int((~ratio.isfinite()).sum())} of {len(x)} samples; its weights have diverged:"
                " take another checkpoint"
            )
        accepted = ratio <= 1.0
        keep = expand_time(accepted.to(x.device), x)
        x, first = torch.where(keep, after, x), torch.where(keep, last, first)
        t = torch.where(accepted, t + step, t)
        if bool((t >= 1.0 - 1e-12).all()):
            return x
        factor = (_SAFETY * ratio.clamp_min(1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        size = torch.where(step > 0, step * factor, size)
    raise RuntimeError(f"dopri5 took {_MAX_STEPS} steps and is not at the end; raise rtol or atol")


def _dopri5_step(
    velocity: Velocity, x: Tensor, t: Tensor, step: Tensor, first: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """State after the step, velocity there, and the error's estimate; t and step fp64 [B]."""
    wide = expand_time(step.to(x.device, x.dtype), x)
    slopes, after = [first], x
    for place, shares in _DOPRI5:
        after = x + wide * sum(w * k for w, k in zip(shares, slopes, strict=True) if w)
        slopes.append(velocity(after, (t + place * step).float()))
    error = wide * sum(w * k for w, k in zip(_DOPRI5_ERROR, slopes, strict=True) if w)
    return after, slopes[-1], error


@dataclass(frozen=True)
class FlowSamplingConfig:
    """How latents are drawn.

    Attributes:
        num_steps: of the time grid.
        method: integrator.
        shift: see `time_grid`; 0 is off.
        cfg_scale: guidance s: ``uncond + s (cond - uncond)``; 1 turns guidance off.
        cfg_start, cfg_end: guide only at times in between, both included.
        guided_channels: first channels that are guided; None guides all. The released code
            guides 3, whatever the latents have.
        rtol, atol: see `integrate_adaptive`; for dopri5, which has neither steps nor shift.
    """

    num_steps: int = 250
    method: Method = "euler"
    shift: float = 0.0
    cfg_scale: float = 1.0
    cfg_start: float = 0.0
    cfg_end: float = 1.0
    guided_channels: int | None = None
    rtol: float = 1e-3
    atol: float = 1e-6


def guided_velocity(model: DiT, labels: Tensor, config: FlowSamplingConfig) -> Velocity:
    """The model's velocity for these labels, with classifier-free guidance.

    Args:
        model: in eval mode.
        labels: int64 [B], on the model's device.
        config: guidance.
    """
    null = torch.full_like(labels, model.num_classes)

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        times = time.expand(len(x))
        within = (times >= config.cfg_start) & (times <= config.cfg_end)
        times = times.to(x.device)
        if config.cfg_scale == 1.0 or not bool(within.any()):
            return model(x, times, labels).prediction.float()
        both = model(torch.cat([x, x]), torch.cat([times, times]), torch.cat([labels, null]))
        conditional, unconditional = both.prediction.float().chunk(2)
        guided = unconditional + config.cfg_scale * (conditional - unconditional)
        channels = config.guided_channels
        if channels is not None:
            guided = torch.cat([guided[:, :channels], conditional[:, channels:]], 1)
        return torch.where(expand_time(within.to(x.device), x), guided, conditional)

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
    velocity = guided_velocity(model, labels, config)
    if config.method == "dopri5":
        return integrate_adaptive(velocity, noise, rtol=config.rtol, atol=config.atol)
    times = time_grid(config.num_steps, config.shift)
    return integrate(velocity, noise, times, config.method)[-1]
