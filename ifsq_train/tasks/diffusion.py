"""Train DiT on latents by flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ifsq_train.config import DiffusionTaskConfig, FlowConfig
from ifsq_train.losses.flow_matching import PATHS, direction_error, shift_times, velocity_error
from ifsq_train.randomness import BatchRandom, on_device
from ifsq_train.tasks.base import StepInfo
from ifsq_train.tasks.generator import GeneratorTask, Labels, Prediction

_TIMES, _NOISE = "flow times", "flow noise"
# The variance-preserving path has no velocity at its very ends (released transport).
_PATH_MARGIN = {"linear": 0.0, "gvp": 0.0, "vp": 1e-5}


class DiffusionTask(GeneratorTask[DiffusionTaskConfig]):
    """Velocity matching with a cosine term and optional alignment (released dit/train.py).

    Times and noise belong to the samples, so a step does not depend on the number of workers.
    """

    def draw_ahead(self, random: BatchRandom) -> dict[str, Tensor]:
        """Times and noise too."""
        network: Any = self.network
        shape = (network.latent_channels, *network.grid)
        return {
            **super().draw_ahead(random),
            _TIMES: draw_times(self.config.flow, random),
            _NOISE: draw_noise(random, shape),
        }

    def predict(
        self, network: nn.Module, inputs: Tensor, labels: Labels, info: StepInfo
    ) -> Prediction:
        """Squared error and direction of the predicted velocity."""
        flow, device = self.config.flow, inputs.device
        t = on_device(info.random.drawn(_TIMES, lambda random: draw_times(flow, random)), device)
        noise = info.random.drawn(_NOISE, lambda random: draw_noise(random, inputs.shape[1:]))
        noise = on_device(noise, device)
        noisy, velocity = PATHS[flow.path]().interpolate(inputs, noise, t)
        output = self.forward(network, info, noisy, t, labels.classes, drop_labels=labels.dropped)
        squared = velocity_error(output.prediction, velocity).mean()
        loss, metrics = squared, {"velocity": squared.detach()}
        if flow.cosine_weight:
            direction = direction_error(output.prediction, velocity).mean()
            loss = loss + flow.cosine_weight * direction
            metrics["direction"] = direction.detach()
        return Prediction(loss, metrics, output.projections)


def draw_noise(random: BatchRandom, shape: Sequence[int]) -> Tensor:
    """fp32 [B, *shape] on the CPU, standard normal."""
    return random.normal("flow_noise", shape)


def draw_times(config: FlowConfig, random: BatchRandom) -> Tensor:
    """fp32 [B] in (0, 1) on the CPU, a function of the samples' places in the global batch."""
    if config.times == "uniform":
        t = random.uniform("flow_time")
    else:
        t = torch.sigmoid(config.time_mean + config.time_std * random.normal("flow_time"))
    margin = _PATH_MARGIN[config.path]
    return shift_times(t, config.shift).clamp(margin, 1.0 - margin)
