"""The union of all recipe kinds."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ifsq_train.config.evaluate import EvaluateConfig
from ifsq_train.config.precompute import PrecomputeConfig
from ifsq_train.config.sample import SampleConfig
from ifsq_train.config.study import StudyConfig
from ifsq_train.config.train import TrainConfig

RecipeConfig = Annotated[
    TrainConfig | PrecomputeConfig | SampleConfig | EvaluateConfig | StudyConfig,
    Field(discriminator="kind"),
]
