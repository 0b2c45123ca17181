"""The shape of the machine or cluster a job runs on."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ifsq_train.config.base import Config

GpuCount = Annotated[int, Field(ge=0)] | Literal["auto"]
"""GPUs of a worker; 0 is the CPU, auto takes one where there is one."""


class LoadingConfig(Config):
    """How a worker loads its batches. No value changes what is in them, so none is in a recipe."""

    prefetch_batches: int = Field(default=2, ge=1)
    """Batches loaded ahead of the step that needs them."""
    reader_threads: int = Field(default=1, ge=1)
    """Batches loaded at the same time; 2 or more hide the latency of object storage."""
    decode_threads: int | None = Field(default=None, ge=1)
    """Images decoded at the same time; as many as the worker has CPU slots if not given."""
    decode_actors: int = Field(default=0, ge=0)
    """Ray actors that decode for each worker, anywhere in the cluster, each with `decode_threads`
    CPU slots; 0 decodes in the worker."""


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
    loading: LoadingConfig = LoadingConfig()
    allow_changes: tuple[str, ...] = ()
    """Keys of the recipe, with everything below them, that may differ from the checkpoint's."""

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
    def decode_threads(self) -> int:
        """Images a worker, or one of its decode actors, decodes at the same time."""
        return self.loading.decode_threads or max(1, int(self.cpus_per_worker))

    @property
    def elastic(self) -> bool:
        """Whether the number of workers may change while the run lasts."""
        return self.min_workers is not None
