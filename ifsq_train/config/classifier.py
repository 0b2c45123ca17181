"""Recipe part: a small supervised classifier, to judge and to teach with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import override

from ifsq_train.config.base import Config
from ifsq_train.config.data import DataConfig
from ifsq_train.config.task_base import TaskConfigBase


class ClassifierConfig(Config):
    """Convolutional network: levels of residual blocks, half the size from one to the next."""

    num_classes: int = Field(ge=2)
    channels: tuple[int, ...] = Field(default=(64, 128, 256), min_length=1)
    """Width of each level."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks per level."""
    norm_groups: int = Field(default=8, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of the pooled features, in training."""

    @property
    def num_features(self) -> int:
        """Width of the features before the last layer."""
        return self.channels[-1]

    @model_validator(mode="after")
    def _groups_divide(self) -> ClassifierConfig:
        if bad := [width for width in self.channels if width % self.norm_groups]:
            raise ValueError(
                f"norm_groups={self.norm_groups} must divide every width, found {bad};"
                " change channels or norm_groups"
            )
        return self


class ClassifierTaskConfig(TaskConfigBase):
    """Train a classifier on labelled images.

    Where no published weights are at hand its features take their place: for Frechet and kernel
    distances in `ifsq evaluate`, and as a REPA teacher. Its numbers carry its name.
    """

    kind: Literal["classifier"]
    model: ClassifierConfig
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    max_shift: int = Field(default=0, ge=0)
    """Images are moved by up to so many pixels each way, the edge repeated."""

    @override
    def networks(self) -> set[str]:
        return {"classifier"}

    @override
    def check_data(self, data: DataConfig) -> None:
        if data.kind != "images":
            raise ValueError(f"task 'classifier' reads data of kind 'images', found '{data.kind}'")
