"""What the tasks of both generators share."""

from __future__ import annotations

from torch import Tensor

from ifsq_train.data.batch import Batch
from ifsq_train.randomness import on_device
from ifsq_train.tasks.base import StepInfo

GENERATOR = "generator"


def labels_with_dropout(batch: Batch, info: StepInfo, chance: float) -> tuple[Tensor, Tensor]:
    """Labels int64 [B], and bool [B] of those to train on the null class.

    Samples without a label are trained on the null class too.
    """
    dropped = info.random.uniform("label_dropout") < chance
    unlabelled = batch.labels < 0
    return batch.labels.clamp_min(0), on_device(dropped, batch.labels.device) | unlabelled
