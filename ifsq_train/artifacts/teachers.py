"""Teacher networks: DINOv2 from its published weight files, classifiers from their run folders."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from data_pipelines.errors import UserError
from ifsq_train.artifacts.classifiers import load_classifier
from ifsq_train.models.classifier import ClassifierTeacher
from ifsq_train.models.fingerprint import update_with_tensors
from ifsq_train.models.repa import DinoTeacher, load_dino


def open_teacher(
    weights: str, size: Literal["S", "B", "L"], grid: tuple[int, int], key: str
) -> DinoTeacher:
    """The frozen teacher in a local file, giving a feature per cell of `grid`.

    Args:
        weights: published DINOv2 backbone, with or without registers.
        size: which one it is.
        grid: height and width.
        key: of the recipe, for messages.

    Raises:
        UserError: no such file, or not such a network.
    """
    if not Path(weights).is_file():
        raise UserError(
            f"{key}: no file '{weights}'; give a local DINOv2 weight file such as"
            " dinov2_vitb14_pretrain.pth, or null to do without"
        )
    try:
        return load_dino(Path(weights), size=size, grid=grid)
    except ValueError as error:
        raise UserError(f"{key}: {error}") from None


def open_classifier_teacher(path: str, features: int, grid: tuple[int, int]) -> ClassifierTeacher:
    """The classifier of a run folder as a teacher, giving a feature per cell of `grid`.

    Raises:
        UserError: no classifier there, or one whose features have another width.
    """
    trained = load_classifier(path)
    if trained.config.num_features != features:
        raise UserError(
            f"task.repa.classifier_features={features}, but the classifier {path} has"
            f" {trained.config.num_features}; give that number"
        )
    return ClassifierTeacher(trained.network, grid)


def teacher_fingerprint(teacher: DinoTeacher) -> str:
    """sha256 (hex) over the teacher's weights and the grid it gives features for."""
    digest = hashlib.sha256(f"dinov2 {teacher.grid}".encode())
    update_with_tensors(digest, teacher.state_dict())
    return digest.hexdigest()
