"""Which process am I: rank, world size and device, however the process was started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
import torch.distributed as dist

from data_pipelines.errors import UserError
from ifsq_train.interruption import Interruption, terminated

if TYPE_CHECKING:
    from ifsq_train.config import TrainConfig
    from ifsq_train.data import TrainData


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

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None = None) -> None:
        """Tell the launcher about progress; collective where the launcher needs it to be."""
        ...

    def restore_from(self) -> Path | None:
        """Checkpoint folder the launcher insists on; None to take the run folder's newest."""
        ...

    def serve(self, data: TrainData, config: TrainConfig) -> TrainData:
        """The same data, perhaps made by helpers the launcher has; batches are bit-identical."""
        ...


def default_device(local_rank: int) -> torch.device:
    """The worker's GPU where there is one, else the CPU."""
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        return torch.device("cuda", torch.cuda.current_device())
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

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None = None) -> None:
        """Keep the metrics in `reports`."""
        del checkpoint
        self.reports.append(dict(metrics))

    def restore_from(self) -> Path | None:
        """Nothing is insisted on."""
        return None

    def serve(self, data: TrainData, config: TrainConfig) -> TrainData:
        """As it is: there are no helpers. `data.decode_actors` needs the Ray launcher."""
        return without_helpers(data, config)


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
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")

    def interruption(self) -> Interruption:
        """SIGTERM, which torchrun passes on."""
        return Interruption.STOP if terminated() else Interruption.NONE

    def report(self, metrics: Mapping[str, float], checkpoint: Path | None = None) -> None:
        """torchrun listens to nobody; metrics are in the run folder."""

    def restore_from(self) -> Path | None:
        """Nothing is insisted on."""
        return None

    def serve(self, data: TrainData, config: TrainConfig) -> TrainData:
        """As it is: there are no helpers. `data.decode_actors` needs the Ray launcher."""
        return without_helpers(data, config)


def without_helpers(data: TrainData, config: TrainConfig) -> TrainData:
    """The data itself.

    Raises:
        UserError: the recipe asks for decode actors.
    """
    if config.data.kind == "images" and config.data.decode_actors:
        raise UserError(
            f"data.decode_actors={config.data.decode_actors} needs Ray; use --launcher ray, or 0"
        )
    return data


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Mean over all ranks, in place; the values themselves in a run of one worker."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values
