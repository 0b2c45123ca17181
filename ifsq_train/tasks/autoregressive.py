"""Train LlamaGen on image tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ifsq_train.config import AutoregressiveTaskConfig
from ifsq_train.data.batch import Batch
from ifsq_train.losses.token_cross_entropy import sum_of_group_means, token_cross_entropy
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.models.plain import plain_paths
from ifsq_train.tasks.base import LossOutput, StepInfo
from ifsq_train.tasks.frozen import Alignment, TokenInputs
from ifsq_train.tasks.generator import GENERATOR, labels_with_dropout


class AutoregressiveTask:
    """Next-token prediction with label dropout and optional alignment (released llamagen/train.py).

    Args:
        config: the task's part of the recipe.
        generator: predicts tokens.
        tokens: where a batch's tokens come from.
        alignment: REPA; the generator then has one projector.
        facts: of tokenizer and data, for those who open the checkpoint; see `describe`.
    """

    def __init__(
        self,
        config: AutoregressiveTaskConfig,
        generator: LlamaGen,
        tokens: TokenInputs | None = None,
        alignment: Alignment | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._config, self._generator = config, generator
        self._tokens, self._alignment = tokens or TokenInputs(), alignment
        self._facts = dict(facts or {})

    def modules(self) -> dict[str, nn.Module]:
        """The transformer."""
        return {GENERATOR: self._generator}

    def auxiliary(self) -> dict[str, nn.Module]:
        """Tokenizer, if images are encoded here, and teacher."""
        others = {} if self._alignment is None else self._alignment.auxiliary()
        return {**self._tokens.auxiliary(), **others}

    def averaged(self) -> tuple[str, ...]:
        """The transformer's average is what is sampled from."""
        return (GENERATOR,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Every step."""
        del step
        return (GENERATOR,)

    def describe(self) -> dict[str, Any]:
        """Which tokens the generator speaks, and the given facts."""
        return {
            **self._facts,
            "codebook_sizes": list(self._generator.codebook_sizes),
            "grid": list(self._generator.grid),
        }

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """See TrainTask.loss."""
        self._generator.train()
        tokens, weights = self._tokens(batch), self._config.group_weights
        labels, dropped = labels_with_dropout(batch, info, self._config.model.class_dropout)
        info.random.seed_layers(update)
        plain = plain_paths()
        with info.strategy.autocast():
            output = models[update](tokens, labels, drop_labels=dropped, losses_only=not plain)
        if plain:
            entropy = token_cross_entropy(output.logits, tokens, weights)
        else:
            entropy = sum_of_group_means(output.group_losses, weights)
        loss, metrics = entropy, {}
        if self._alignment is not None:
            aligned = self._alignment.loss(output.projections, batch, info)
            loss = loss + self._alignment.weight * aligned
            metrics = {"cross_entropy": entropy.detach(), "alignment": aligned.detach()}
        return LossOutput(loss, {"loss": loss.detach(), **metrics})
