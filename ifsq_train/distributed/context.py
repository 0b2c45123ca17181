"""Which process am I: rank, world size and device, however the process was started."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from ifsq_train.config.launch import GpuCount
from ifsq_train.distributed.collectives import COLLECTIVE_SECONDS, backend_of
from ifsq_train.distributed.interruption import Interruption, terminated

logger = logging.getLogger(__name__)


class RunContext(Protocol):
    """One worker's place in the run; implemented in-process, by torchrun and by Ray Train."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    launch_id: str
    """Names the launch; its workers may be started several times."""

    def interruption(self) -> Interruption:
        """What this worker was told; cheap, never waits."""
        ...

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell the launcher about progress; collective where the launcher needs it to be."""
        ...


def default_device(local_rank: int) -> torch.device:
    """The worker's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def chosen_device(gpus: GpuCount) -> torch.device:
    """The device of one worker in this process; says so where a GPU is left alone.

    Args:
        gpus: 0 is the CPU; auto takes a GPU where there is one.

    Raises:
        UserError: a GPU was asked for and there is none.
    """
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == "auto":
        return default_device(0)
    if gpus > found:
        raise UserError(
            f"--gpus-per-worker {gpus}: this machine has {found} GPU(s); ask for fewer, or for 0"
            " to train on the CPU"
        )
    if gpus:
        return default_device(0)
    if found:
        logger.warning(
            "training on the CPU: %d GPU(s) are here, none was asked for;"
            " --gpus-per-worker auto takes one",
            found,
        )
    return torch.device("cpu")


@dataclass
class InProcessContext:
    """A run of one worker in this process; for tests and small jobs."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: default_device(0))
    reports: list[dict[str, float]] = field(default_factory=list)
    launch_id: str = "local"

    def interruption(self) -> Interruption:
        """SIGTERM."""
        return Interruption.STOP if terminated() else Interruption.NONE

    def report(self, metrics: Mapping[str, float]) -> None:
        """Keep the metrics in `reports`."""
        self.reports.append(dict(metrics))


@dataclass
class TorchrunContext:
    """A worker started by torchrun, read from its environment variables."""

    rank: int = field(default_factory=lambda: int(os.environ["RANK"]))
    world_size: int = field(default_factory=lambda: int(os.environ["WORLD_SIZE"]))
    local_rank: int = field(default_factory=lambda: int(os.environ["LOCAL_RANK"]))
    device: torch.device = field(init=False)
    launch_id: str = "torchrun"

    def __post_init__(self) -> None:
        self.device = default_device(self.local_rank)
        if not dist.is_initialized():
            patience = timedelta(seconds=COLLECTIVE_SECONDS)
            dist.init_process_group(backend_of(self.device), timeout=patience)

    def interruption(self) -> Interruption:
        """SIGTERM, which torchrun passes on."""
        return Interruption.STOP if terminated() else Interruption.NONE

    def report(self, metrics: Mapping[str, float]) -> None:
        """torchrun listens to nobody; metrics are in the run folder."""
