"""The shape of the machine or cluster a job runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ifsq_train.config.base import Config

GpuCount = Annotated[int, Field(ge=0)] | Literal["auto"]
"""GPUs of a worker; 0 is the CPU, auto takes one where there is one."""


class LaunchConfig(Config):
    """The shape of the machine a run gets; never part of a recipe."""

    num_workers: int = Field(default=1, ge=1)
    """Workers wanted; the most an elastic run grows to."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic: the run goes on with as few; not given: always exactly num_workers."""
    gpus_per_worker: GpuCount = 0
    cpus_per_worker: float = Field(default=1, gt=0)
    address: str | None = None
    """Ray cluster to join; a local one is started when not given."""
    max_failures: int = Field(default=3, ge=0)
    """Restarts of the worker group before the run is given up."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> LaunchConfig:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers={self.min_workers} is more than num_workers={self.num_workers}"
            )
        return self

    @property
    def gpus(self) -> int:
        """GPUs of a worker, once `auto` has become a number."""
        assert self.gpus_per_worker != "auto", "auto is settled where the cluster is known"
        return self.gpus_per_worker

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run lasts."""
        return self.min_workers is not None
