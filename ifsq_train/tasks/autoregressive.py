"""Train LlamaGen on image tokens."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ifsq_train.config import AutoregressiveTaskConfig
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.tasks.base import Batch, LossOutput, StepInfo

GENERATOR = "generator"


class AutoregressiveTask:
    """Next-token prediction with label dropout (released llamagen/train.py).

    Args:
        config: the task's part of the recipe.
        generator: a ``models.llamagen.LlamaGen``.
    """

    def __init__(self, config: AutoregressiveTaskConfig, generator: nn.Module) -> None:
        self._config = config
        self._generator = generator

    def modules(self) -> dict[str, nn.Module]:
        """The transformer."""
        return {GENERATOR: self._generator}

    def auxiliary(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def averaged(self) -> tuple[str, ...]:
        """The transformer's average is what is sampled from."""
        return (GENERATOR,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Every step."""
        del step
        return (GENERATOR,)

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """See TrainTask.loss."""
        self._generator.train()
        tokens = batch.inputs
        dropped = info.random.uniform("label_dropout") < self._config.model.class_dropout
        # Samples without a label are trained on the null class too.
        unlabelled = batch.labels < 0
        labels = batch.labels.clamp_min(0)
        info.random.seed_layers(update)
        with info.strategy.autocast():
            output = models[update](
                tokens, labels, drop_labels=dropped.to(tokens.device) | unlabelled
            )
        loss = token_cross_entropy(output.logits, tokens, self._config.group_weights)
        return LossOutput(loss, {"loss": loss.detach()})
