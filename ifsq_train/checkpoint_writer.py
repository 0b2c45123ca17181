"""Writing checkpoints off the step's path.

Each rank copies what it owns to host memory while the loop waits, and writes the file from a
background thread; rank 0's thread publishes the marker once it has seen every rank's file. No
collective runs in the background, so training may go on meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save as to_safetensors
from torch import Tensor

from ifsq_train.checkpoint import (
    FORMAT_VERSION,
    MARKER,
    list_steps,
    seal,
    step_folder,
    write_atomically,
)

_PUBLISH_TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Piece:
    """A contiguous part of one state of one parameter, as this rank will write it.

    Attributes:
        network: name of the network.
        parameter: parameter name in it.
        state: ``master``, ``exp_avg``, ``exp_avg_sq`` or ``ema``.
        shape: full shape of the parameter.
        start: first element in the flattened parameter.
        values: 1-D fp32 tensor.
    """

    network: str
    parameter: str
    state: str
    shape: tuple[int, ...]
    start: int
    values: Tensor

    @property
    def key(self) -> str:
        """Unique tensor name in a file."""
        return f"{self.network}/{self.parameter}/{self.state}@{self.start}"

    def record(self) -> dict[str, Any]:
        """What the index says of it."""
        return {
            "network": self.network,
            "parameter": self.parameter,
            "state": self.state,
            "shape": list(self.shape),
            "start": self.start,
            "length": self.values.numel(),
        }


def shared_attempt_id() -> str:
    """A fresh random name for this start of the run, equal on all ranks (collective)."""
    attempt = torch.tensor(secrets.randbits(62), dtype=torch.int64)
    if dist.is_initialized():
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        attempt = attempt.to(device)
        dist.broadcast(attempt, src=0)
    return f"{int(attempt):016x}"


class CheckpointWriter:
    """Writes one rank's part of each checkpoint in the background.

    Args:
        folder: the run's ``checkpoints`` folder, shared by all ranks.
        rank, world_size: this worker's place.
        attempt: equal on all ranks and different in every (re)start of the run, so that files
            left by a killed attempt are never taken for this one's.
        keep_last: complete checkpoints to keep.
    """

    def __init__(
        self, folder: Path, *, rank: int, world_size: int, attempt: str, keep_last: int
    ) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._attempt, self._keep_last = attempt, keep_last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        pieces: list[Piece],
        buffers: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Copy the state now, write it in the background; waits for an unfinished save first.

        Args:
            step: names the folder.
            pieces: what this rank owns.
            buffers: un-sharded tensors; only rank 0's are written.
            header: JSON-able contents of the marker (train state, recipe, versions, ...).

        Raises:
            OSError: the previous save failed, for example because the disk is full.
        """
        self.wait()
        staged = {piece.key: _to_host(piece.values) for piece in pieces}
        shared = {name: _to_host(value) for name, value in buffers.items()}
        records = [piece.record() for piece in pieces]
        self._pending = self._thread.submit(
            self._write, step, staged, records, shared, dict(header)
        )

    def wait(self) -> None:
        """Until the last save is on disk; raises what went wrong with it."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()

    def close(self) -> None:
        """Finish the last save and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(
        self,
        step: int,
        staged: dict[str, Tensor],
        records: list[dict[str, Any]],
        shared: dict[str, Tensor],
        header: dict[str, Any],
    ) -> None:
        target = step_folder(self._folder, step)
        target.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            # A damaged checkpoint of this step may stand here: hide it before touching it.
            (target / MARKER).unlink(missing_ok=True)
        name = f"rank-{self._rank:05d}"
        data = to_safetensors(staged)
        write_atomically(target / f"{name}.safetensors", data)
        sidecar = {"attempt": self._attempt, "pieces": records, **_digest(data)}
        write_atomically(target / f"{name}.json", json.dumps(sidecar).encode())
        if self._rank == 0:
            self._publish(step, target, shared, header)

    def _publish(
        self, step: int, target: Path, shared: dict[str, Tensor], header: dict[str, Any]
    ) -> None:
        data = to_safetensors(shared)
        write_atomically(target / "shared.safetensors", data)
        files = {"shared.safetensors": _digest(data)}
        for rank in range(self._world_size):
            name = f"rank-{rank:05d}"
            sidecar, text = self._await_sidecar(target / f"{name}.json")
            files[f"{name}.safetensors"] = {k: sidecar[k] for k in ("bytes", "sha256")}
            files[f"{name}.json"] = _digest(text)
        marker = {
            "format": FORMAT_VERSION,
            "step": step,
            "world_size": self._world_size,
            "files": files,
            **header,
        }
        write_atomically(target / MARKER, seal(marker))
        _delete_old(self._folder, self._keep_last)

    def _await_sidecar(self, path: Path) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + _PUBLISH_TIMEOUT_SECONDS
        while True:
            if path.is_file():
                text = path.read_bytes()
                sidecar = json.loads(text)
                if sidecar["attempt"] == self._attempt:
                    return sidecar, text
            if time.monotonic() > deadline:
                raise OSError(
                    f"{path}: not written by its rank within"
                    f" {_PUBLISH_TIMEOUT_SECONDS:.0f} s; checkpoint not published"
                )
            time.sleep(0.01)


def _to_host(tensor: Tensor) -> Tensor:
    copy = torch.empty(tensor.shape, dtype=tensor.dtype)
    return copy.copy_(tensor.detach())


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _delete_old(folder: Path, keep_last: int) -> None:
    for step in list_steps(folder)[:-keep_last]:
        target = step_folder(folder, step)
        # Marker first: a kill in between leaves a folder no reader looks at.
        (target / MARKER).unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)
