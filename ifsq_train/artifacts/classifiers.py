"""Classifiers opened from their run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_pipelines.errors import UserError
from ifsq_train.artifacts.trained import load_weights
from ifsq_train.checkpoint.reader import open_checkpoint
from ifsq_train.config import TrainConfig
from ifsq_train.config.classifier import ClassifierConfig, ClassifierTaskConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.models.classifier import Classifier


@dataclass(frozen=True)
class TrainedClassifier:
    """A classifier in eval mode with the weights that are used after training.

    Attributes:
        network: float32, on the CPU.
        config: its architecture.
        fingerprint: sha256 over weights and shape.
        step: optimizer steps of the run it comes from.
    """

    network: Classifier
    config: ClassifierConfig
    fingerprint: str
    step: int


def build_classifier(config: ClassifierConfig) -> Classifier:
    """The network a recipe asks for, freshly initialised."""
    return Classifier(
        config.num_classes,
        config.channels,
        blocks=config.blocks,
        norm_groups=config.norm_groups,
        dropout=config.dropout,
    )


def load_classifier(path: str | Path) -> TrainedClassifier:
    """Open a classifier with its averaged weights, or the live ones if none were kept.

    Raises:
        UserError: no complete checkpoint at `path`, or not one of a classifier.
    """
    checkpoint = open_checkpoint(path)
    recipe = validate_recipe(checkpoint.header["recipe"], source=str(checkpoint.folder))
    task = recipe.task if isinstance(recipe, TrainConfig) else None
    if not isinstance(task, ClassifierTaskConfig):
        kind = recipe.kind if task is None else task.kind
        raise UserError(
            f"{checkpoint.folder}: a checkpoint of a '{kind}' run; a classifier's is needed"
        )
    network = build_classifier(task.model)
    load_weights(checkpoint, "classifier", network)
    return TrainedClassifier(network, task.model, network.fingerprint(), checkpoint.step)
