"""Recipe part: where a run's numbers and images go besides its own log.

No key holds a secret: keys and passwords are read by the trackers' own libraries from their
environment variables.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from ifsq_train.config.base import Config
from ifsq_train.config.kinds import OneOf
from ifsq_train.config.paths import RunPath
from ifsq_train.config.sample import FlowDrawConfig


class TensorBoardConfig(Config):
    """Event files for TensorBoard; needs the package `tensorboard`."""

    kind: Literal["tensorboard"]
    folder: RunPath | None = None
    """Where they are written; ``tensorboard`` in the run folder when not given."""


class WandbConfig(Config):
    """Weights & Biases; needs the package `wandb`, and WANDB_API_KEY in the environment."""

    kind: Literal["wandb"]
    project: str
    entity: str | None = None
    """Team; the key's own when not given."""
    mode: Literal["online", "offline"] | None = None
    """offline: only files in the run folder, for `wandb sync`; WANDB_MODE when not given."""


class MlflowConfig(Config):
    """MLflow; needs the package `mlflow` or `mlflow-skinny`, credentials as MLFLOW_ variables."""

    kind: Literal["mlflow"]
    experiment: str = "ifsq"
    tracking_uri: RunPath | None = None
    """Server or folder; MLFLOW_TRACKING_URI, or ``mlruns`` in the run folder, when not given."""


class AimConfig(Config):
    """Aim; needs the package `aim`."""

    kind: Literal["aim"]
    experiment: str = "ifsq"
    repo: RunPath | None = None
    """Repository; ``aim`` in the run folder when not given."""


TrackerConfig = Annotated[
    TensorBoardConfig | WandbConfig | MlflowConfig | AimConfig | Config, OneOf("ifsq.trackers")
]


class TrackImagesConfig(Config):
    """Pictures for trackers: reconstructions of fixed images, samples of fixed classes and seeds.

    Made with the weights being trained, on rank 0, and not at ZeRO stage 3, which has no whole
    network there. They change nothing of the run.
    """

    every_steps: int = Field(ge=1)
    count: int = Field(default=8, ge=1, le=64)
    """Images, from the front of the dataset; or samples, one of each class in turn."""
    cfg_scale: float = Field(default=1.0, ge=0)
    """Generators: guidance, as in sample recipes."""
    flow: FlowDrawConfig = FlowDrawConfig(num_steps=50)
    """Generators of latents: how the flow is integrated, as in sample recipes."""
