"""The run context of a Ray Train worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ifsq_train.config import LaunchConfig
from ifsq_train.distributed.interruption import Interruption

RESIZE_CHECK_SECONDS = 10.0
"""How often Ray looks whether an elastic run could be larger."""


CAPACITY_POLL_SECONDS = 1.0


STOP_POLL_SECONDS = 0.5


class RayTrainContext:
    """RunContext of a Ray Train worker.

    Args:
        launch_id: names the launch.
        stop_file: exists when the driver was asked to stop.
        use_gpu: the worker was given a GPU. Without one it stays on the CPU whatever is there:
            Ray leaves all GPUs visible, and every worker would take the first.
    """

    def __init__(self, launch_id: str, stop_file: Path, *, use_gpu: bool) -> None:
        import ray.train
        import ray.train.torch
        import torch
        from ray.train.v2._internal.execution.context import get_train_context

        own = ray.train.get_context()
        self.rank = own.get_world_rank()
        self.world_size = own.get_world_size()
        self.local_rank = own.get_local_rank()
        self.device = ray.train.torch.get_device() if use_gpu else torch.device("cpu")
        self.launch_id = launch_id
        # The public get_preemption_info is a barrier, too slow to be asked at every step.
        self._preemption = get_train_context().preemption_context
        self._report = ray.train.report
        self._stop_file, self._stop_looked, self._stopping = stop_file, 0.0, False
        self._capacity: CapacityWatch | None = None

    def watch_capacity(self, launch: LaunchConfig) -> None:
        """Elastic runs: save when the group is about to grow."""
        if launch.elastic and self.rank == 0 and self.world_size < launch.num_workers:
            self._capacity = CapacityWatch(launch, self.world_size)

    def interruption(self) -> Interruption:
        """The driver's wish to stop, a node that is being drained, room to grow.

        Only rank 0 looks for the wish, in the shared run folder; the vote tells the others.
        """
        now = time.monotonic()
        if self.rank == 0 and now - self._stop_looked > STOP_POLL_SECONDS:
            self._stop_looked = now
            self._stopping = self._stop_file.exists()
        if self._stopping:
            return Interruption.STOP
        if self._preemption.preemption_info is not None:
            return Interruption.PREEMPTED
        if self._capacity is not None and self._capacity.take_notice():
            return Interruption.SAVE
        return Interruption.NONE

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell Ray the run is alive; checkpoints stay in the run folder, which Ray's own pointer
        could lag behind."""
        self._report(dict(metrics))


class CapacityWatch:
    """Notices, once, that the cluster has room for more workers than there are.

    Ray then replaces the whole group at its next look, without warning; a checkpoint made now
    saves the steps since the last one.
    """

    def __init__(self, launch: LaunchConfig, world_size: int) -> None:
        self._launch, self._world_size = launch, world_size
        self._room = threading.Event()
        self._told = False
        threading.Thread(target=self._poll, name="capacity", daemon=True).start()

    def take_notice(self) -> bool:
        """True once, when there is room."""
        if self._told or not self._room.is_set():
            return False
        self._told = True
        return True

    def _poll(self) -> None:
        import ray

        while not self._room.is_set():
            time.sleep(CAPACITY_POLL_SECONDS)
            if possible_workers(ray.nodes(), self._launch) > self._world_size:
                self._room.set()


def possible_workers(nodes: list[dict[str, Any]], launch: LaunchConfig) -> int:
    """Workers that fit on the living nodes, at most `launch.num_workers`."""
    needed = worker_resources(launch)
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    fitting = (
        min(int(resources.get(key, 0.0) // amount) for key, amount in needed.items())
        for resources in alive
    )
    return min(sum(fitting), launch.num_workers)


def worker_resources(launch: LaunchConfig) -> dict[str, float]:
    """What one worker takes of a node."""
    resources: dict[str, float] = {"CPU": launch.cpus_per_worker}
    if launch.gpus:
        resources["GPU"] = launch.gpus
    return resources
