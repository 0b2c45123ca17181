"""Train a classifier on labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ifsq_train.config.classifier import ClassifierTaskConfig
from ifsq_train.data.batch import Batch
from ifsq_train.models.classifier import Classifier
from ifsq_train.tasks.base import LossOutput, StepInfo

CLASSIFIER = "classifier"


class ClassifierTask:
    """Cross-entropy of the labels; images may be moved by a few pixels.

    Args:
        config: the task's part of the recipe.
        network: what is trained.
    """

    def __init__(self, config: ClassifierTaskConfig, network: Classifier) -> None:
        self._config, self._network = config, network

    def modules(self) -> dict[str, nn.Module]:
        """The classifier."""
        return {CLASSIFIER: self._network}

    def auxiliary(self) -> dict[str, nn.Module]:
        """None."""
        return {}

    def averaged(self) -> tuple[str, ...]:
        """The classifier's average is what judges."""
        return (CLASSIFIER,)

    def updates(self, step: int) -> tuple[str, ...]:
        """Every step."""
        del step
        return (CLASSIFIER,)

    def describe(self) -> dict[str, Any]:
        """Nothing: the recipe says it all."""
        return {}

    def loss(
        self, update: str, models: Mapping[str, nn.Module], batch: Batch, info: StepInfo
    ) -> LossOutput:
        """Mean cross-entropy; images without a label or beyond `num_classes` count for nothing."""
        self._network.train()
        images = self._moved(batch.inputs, info)
        labels = batch.labels
        known = (labels >= 0) & (labels < self._config.model.num_classes)
        labels = torch.where(known, labels, -100)
        info.random.seed_layers(update)
        with info.strategy.autocast():
            logits = models[update](images)
        each = F.cross_entropy(
            logits.float(),
            labels,
            reduction="none",
            label_smoothing=self._config.label_smoothing,
        )
        loss = each.mean()
        hits = (logits.argmax(1) == labels).float().mean()
        return LossOutput(loss, {"loss": loss.detach(), "accuracy": hits.detach()})

    def _moved(self, images: Tensor, info: StepInfo) -> Tensor:
        most = self._config.max_shift
        if not most:
            return images
        padded = F.pad(images, (most,) * 4, mode="replicate")
        draws = [info.random.uniform(f"shift_{axis}") for axis in ("y", "x")]
        tops, lefts = ((draw * (2 * most + 1)).long().tolist() for draw in draws)
        height, width = images.shape[2:]
        return torch.stack(
            [
                image[:, top : top + height, left : left + width]
                for image, top, left in zip(padded, tops, lefts, strict=True)
            ]
        )
