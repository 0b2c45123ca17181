"""Train DiT on latents by flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ifsq_train.config import DiffusionTaskConfig, FlowConfig
from ifsq_train.data.batch import Batch
from ifsq_train.losses.flow_matching import PATHS, direction_error, shift_times, velocity_error
from ifsq_train.models.dit import DiT
from ifsq_train.randomness import BatchRandom, on_device
from ifsq_train.tasks.base import LossOutput, StepInfo
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from ifsq_train.tasks.generator import GENERATOR, labels_with_dropout

# The variance-preserving path has no velocity at its very ends (released transport).
_PATH_MARGIN = {"linear": 0.0, "gvp": 0.0, "vp": 1e-5}


class DiffusionTask:
    """Velocity matching with a cosine term and optional alignment (released dit/train.py).

    Times and noise belong to the samples, so a step does not depend on the number of workers.

    Args:
        config: the task's part of the recipe.
        generator: predicts velocities.
        latents: where a batch's latents come from.
        alignment: REPA; the generator then has one projector.
        facts: of tokenizer and data, for those who open the checkpoint; see `describe`.
    """

    def __init__(
        self,
        config: DiffusionTaskConfig,
        generator: DiT,
        latents: LatentInputs,
        alignment: Alignment | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._generator = config, generator
        self._latents, self._alignment = latents, alignment
        self._path = PATHS[config.flow.path]()
        self._facts = dict(facts or {})

    def modules(self) -> dict[str, torch.nn.Module]:
        """The transformer."""
        return {GENERATOR: self._generator}

    def auxiliary(self) -> dict[str, torch.nn.Module]:
        """Tokenizer or quantizer, and teacher."""
        others = {} if self._alignment is None else self._alignment.auxiliary()
        return {**self._latents.auxiliary(), **others}

    def averaged(self) -> tuple[str, ...]:
        """The transformer's average is what is sampled from."""
        return (GENERATOR,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Every step."""
        del step
        return (GENERATOR,)

    def describe(self) -> dict[str, Any]:
        """Shape and scaling of the latents, which sampling undoes, and the given facts."""
        scaling = self._latents.scaling
        return {
            **self._facts,
            "latent_channels": self._generator.latent_channels,
            "grid": list(self._generator.grid),
            "latent_mean": list(scaling.mean),
            "latent_std": list(scaling.std),
        }

    def loss(
        self, update: str, models: Mapping[str, torch.nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """See TrainTask.loss."""
        self._generator.train()
        data = self._latents(batch)
        labels, dropped = labels_with_dropout(batch, info, self._config.model.class_dropout)
        t = on_device(draw_times(self._config.flow, info.random), data.device)
        noise = on_device(info.random.normal("flow_noise", data.shape[1:]), data.device)
        noisy, velocity = self._path.interpolate(data, noise, t)
        info.random.seed_layers(update)
        with info.strategy.autocast():
            output = models[update](noisy, t, labels, drop_labels=dropped)
        squared = velocity_error(output.prediction, velocity).mean()
        loss, metrics = squared, {"velocity": squared.detach()}
        if weight := self._config.flow.cosine_weight:
            direction = direction_error(output.prediction, velocity).mean()
            loss = loss + weight * direction
            metrics["direction"] = direction.detach()
        if self._alignment is not None:
            aligned = self._alignment.loss(output.projections, batch, info)
            loss = loss + self._alignment.weight * aligned
            metrics["alignment"] = aligned.detach()
        return LossOutput(loss, {"loss": loss.detach(), **metrics})


def draw_times(config: FlowConfig, random: BatchRandom) -> Tensor:
    """fp32 [B] in (0, 1) on the CPU, a function of the samples' places in the global batch."""
    if config.times == "uniform":
        t = random.uniform("flow_time")
    else:
        t = torch.sigmoid(config.time_mean + config.time_std * random.normal("flow_time"))
    margin = _PATH_MARGIN[config.path]
    return shift_times(t, config.shift).clamp(margin, 1.0 - margin)
