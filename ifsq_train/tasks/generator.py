"""The shell of every generator's task: networks, labels, alignment; a subclass has the loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ifsq_train.config import GeneratorTaskConfig
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.data.batch import Batch
from ifsq_train.models.generator_spec import GeneratorSpec
from ifsq_train.randomness import BatchRandom, on_device
from ifsq_train.tasks.base import LossOutput, StepInfo
from ifsq_train.tasks.frozen import Alignment, LatentInputs, TokenInputs

_DROPPED = "dropped labels"
ConfigT = TypeVar("ConfigT", bound=GeneratorTaskConfig)


@dataclass(frozen=True)
class Labels:
    """What a batch is conditioned on.

    Attributes:
        classes: int64 [B]; 0 where a sample has none.
        dropped: bool [B], those to train on the null class: by chance, or without a label.
    """

    classes: Tensor
    dropped: Tensor


@dataclass(frozen=True)
class Prediction:
    """What a generator's own loss gives.

    Attributes:
        loss: scalar, without the alignment term.
        metrics: detached scalars for the log.
        projections: what alignment compares with the teacher's features, one per projector.
    """

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    projections: tuple[Tensor, ...] = ()


class GeneratorTask(ABC, Generic[ConfigT]):
    """Trains one network, named ``generator``, on tokens or latents.

    Args:
        config: the task's part of the recipe.
        network: what is trained.
        inputs: makes a batch's tokens or scaled latents; batches of tokens where not given.
        alignment: REPA; the network then has one projector.
        spec: what the network speaks; checkpoints store it.
    """

    def __init__(
        self,
        config: ConfigT,
        network: nn.Module,
        inputs: TokenInputs | LatentInputs | None = None,
        alignment: Alignment | None = None,
        spec: GeneratorSpec | None = None,
    ) -> None:
        self.config, self.network = config, network
        self._inputs, self._alignment = inputs or TokenInputs(), alignment
        self._spec = spec

    @abstractmethod
    def predict(
        self, network: nn.Module, inputs: Tensor, labels: Labels, info: StepInfo
    ) -> Prediction:
        """The generator's own loss; the network is called through `forward`.

        Args:
            network: wrapped by its engine, in training mode.
            inputs: tokens int64 [B, T] or [B, T, G], or scaled latents fp32 [B, C, h, w].
            labels: what to condition on.
            info: the step; draws come from its `random`.
        """

    def forward(self, network: nn.Module, info: StepInfo, *inputs: Any, **options: Any) -> Any:
        """Call the network in the run's precision, its dropout tied to the batch."""
        info.random.seed_layers(GENERATOR)
        with info.strategy.autocast():
            return network(*inputs, **options)

    @property
    def aligned(self) -> bool:
        """Whether there is an alignment term."""
        return self._alignment is not None

    def draw_ahead(self, random: BatchRandom) -> dict[str, Tensor]:
        """Random numbers a batch can bring along, so that no step waits for the host to draw them.

        Args:
            random: of the batch's samples.
        """
        return {_DROPPED: dropped_labels(random, self.config.model.class_dropout)}

    def inputs(self, batch: Batch) -> Tensor:
        """What the network is trained on, see `predict`."""
        return self._inputs(batch)

    def modules(self) -> dict[str, nn.Module]:
        """The network."""
        return {GENERATOR: self.network}

    def auxiliary(self) -> dict[str, nn.Module]:
        """Tokenizer or quantizer, where inputs are made here, and teacher."""
        others = {} if self._alignment is None else self._alignment.auxiliary()
        return {**self._inputs.auxiliary(), **others}

    def averaged(self) -> tuple[str, ...]:
        """The network's average is what is sampled from."""
        return (GENERATOR,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Every step."""
        del step
        return (GENERATOR,)

    def describe(self) -> dict[str, Any]:
        """What the generator speaks; `GeneratorSpec.from_dict` reads it."""
        return {} if self._spec is None else self._spec.to_dict()

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """Loss of the generator on a batch of tokens or latents, with its alignment term."""
        self.network.train()
        inputs = self._inputs(batch)
        labels = labels_with_dropout(batch, info, self.config.model.class_dropout)
        made = self.predict(models[update], inputs, labels, info)
        loss, metrics = made.loss, dict(made.metrics)
        if self._alignment is not None:
            aligned = self._alignment.loss(made.projections, batch, info)
            loss = loss + self._alignment.weight * aligned
            metrics["alignment"] = aligned.detach()
        return LossOutput(loss, {"loss": loss.detach(), **metrics})


def dropped_labels(random: BatchRandom, chance: float) -> Tensor:
    """bool [B], those that are dropped by chance."""
    return random.uniform("label_dropout") < chance


def labels_with_dropout(batch: Batch, info: StepInfo, chance: float) -> Labels:
    """The batch's labels; each is dropped with a chance, and where a sample has none."""
    dropped = info.random.drawn(_DROPPED, lambda random: dropped_labels(random, chance))
    unlabelled = batch.labels < 0
    dropped = on_device(dropped, batch.labels.device)
    return Labels(batch.labels.clamp_min(0), dropped | unlabelled)
