"""Writing checkpoints off the step's path.

Each rank copies what it owns to host memory while the loop waits, and writes the file from a
background thread; rank 0's thread publishes the marker once it has seen every rank's file. No
collective runs in the background, so training may go on meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_pipelines.storage.local import write_atomically
from ifsq_train.checkpoint.fence import Fence
from ifsq_train.checkpoint.format import FORMAT_VERSION, INDEX, MARKER, Piece, seal, step_folder
from ifsq_train.checkpoint.intact import IntactCheckpoints
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.stream import Hashed, file_parts, read_back

logger = logging.getLogger(__name__)

_PUBLISH_TIMEOUT_SECONDS = 600.0
_ABORT_SECONDS = 5.0
"""What a failing run gives its last save to become complete."""


@dataclass
class _Save:
    """A save that is under way."""

    step: int
    written: Future[None]
    published: Future[None] | None
    abandoned: threading.Event


class CheckpointWriter:
    """Writes one rank's part of each checkpoint in the background.

    Args:
        folder: the run's ``checkpoints`` folder, shared by all ranks.
        rank, world_size: this worker's place.
        attempt: equal on all ranks and different in every (re)start of the run, so that files
            left by a killed attempt are never taken for this one's.
        retention: which complete checkpoints to keep.
        max_failed_saves: saves in a row that may fail before the run is ended.
        agree: maximum of a flag over all ranks (collective, called on the loop's thread); where
            not given each rank decides alone.
        fence: checked before anything is written.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        attempt: str,
        retention: Retention,
        max_failed_saves: int = 0,
        agree: Callable[[bool], bool] | None = None,
        fence: Fence | None = None,
    ) -> None:
        self._folder, self._rank, self._world_size = folder, rank, world_size
        self._attempt = attempt
        self._retention, self._intact = retention, IntactCheckpoints()
        self._max_failed_saves, self._failed_saves = max_failed_saves, 0
        self._agree = agree or (lambda flag: flag)
        self._fence = fence
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: _Save | None = None
        self._staging: dict[str, Tensor] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def save(
        self,
        step: int,
        pieces: list[Piece],
        buffers: Mapping[str, Tensor],
        header: Mapping[str, Any],
    ) -> None:
        """Copy the state now, write it in the background; settles an unfinished save first.

        Args:
            step: names the folder.
            pieces: what this rank owns.
            buffers: un-sharded tensors; only rank 0's are written.
            header: JSON-able contents of the marker (train state, recipe, versions, ...).

        Raises:
            OSError: more saves in a row have failed than allowed (disk full, ...).
            FencedOff: the folder belongs to another start of the run.
        """
        self.settle()
        # The last save is over, and so its copies are free to be written to.
        staged = {piece.key: self._to_host(piece.key, piece.values) for piece in pieces}
        records = [piece.record() for piece in pieces]
        abandoned = threading.Event()
        written = self._thread.submit(self._write, step, staged, records)
        published = None
        if self._rank == 0:
            shared = {key: self._to_host(key, value) for key, value in buffers.items()}
            published = self._thread.submit(
                self._publish, written, step, shared, dict(header), abandoned
            )
        self._pending = _Save(step, written, published, abandoned)

    def _to_host(self, key: str, tensor: Tensor) -> Tensor:
        """A copy, in the memory of the save before: fresh pages cost more than the copying."""
        copy = self._staging.get(key)
        if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
            pinned = tensor.is_cuda
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=pinned)
            self._staging[key] = copy
        return copy.copy_(tensor.detach())

    def settle(self) -> None:
        """Until the last save is on disk or known to have failed, on all ranks alike.

        A save that failed is logged and the run goes on without it, unless too many in a row do.
        The previous checkpoint is untouched in any case.

        Raises:
            OSError, FencedOff: see `save`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        error = pending.written.exception()
        failed = self._agree(error is not None)
        if pending.published is not None:
            if failed:
                pending.abandoned.set()
            error = pending.published.exception() or error
        failed = self._agree(error is not None) or failed
        if not failed:
            self._failed_saves = 0
            return
        if error is not None and not isinstance(error, OSError):
            raise error
        self._count_failure(pending.step, error)

    def _count_failure(self, step: int, error: BaseException | None) -> None:
        reason = f"{error}" if error is not None else "another rank could not write its part"
        self._failed_saves += 1
        if self._failed_saves > self._max_failed_saves:
            if isinstance(error, OSError) and error.strerror:
                what = (
                    f"checkpoint of step {step} could not be saved ({error.strerror}), earlier ones"
                    " are intact"
                )
                raise OSError(error.errno, what, error.filename) from error
            raise OSError(
                f"checkpoint of step {step} could not be saved: {reason}. Earlier checkpoints are"
                " intact; free space or mend the storage and run again"
            ) from error
        logger.error(
            "checkpoint of step %d could not be saved: %s; training goes on (failure %d of at"
            " most %d in a row)",
            step,
            reason,
            self._failed_saves,
            self._max_failed_saves,
        )

    def close(self) -> None:
        """Finish the last save and end the thread."""
        try:
            self.settle()
        finally:
            self.abort()

    def abort(self) -> None:
        """End the thread without asking the other ranks anything; they may be gone."""
        pending = self._pending
        if pending is not None:
            last = pending.published or pending.written
            wait([last], timeout=_ABORT_SECONDS)
            pending.abandoned.set()
        self._thread.shutdown()

    def _write(self, step: int, staged: dict[str, Tensor], records: list[dict[str, Any]]) -> None:
        if self._fence is not None:
            self._fence.check()
        target = step_folder(self._folder, step)
        target.mkdir(parents=True, exist_ok=True)
        if self._rank == 0:
            # A damaged checkpoint of this step may stand here: hide it before touching it.
            (target / MARKER).unlink(missing_ok=True)
        name = f"rank-{self._rank:05d}"
        digest = _write_tensors(target / f"{name}.safetensors", staged)
        sidecar = {"attempt": self._attempt, "pieces": records, **digest}
        _write_text(target / f"{name}.json", sidecar)

    def _publish(
        self,
        written: Future[None],
        step: int,
        shared: dict[str, Tensor],
        header: dict[str, Any],
        abandoned: threading.Event,
    ) -> None:
        # On the same thread as the writing, so that is done; a failure is reported from there.
        if written.exception() is not None:
            return
        target = step_folder(self._folder, step)
        files = {"shared.safetensors": _write_tensors(target / "shared.safetensors", shared)}
        index: dict[str, Any] = {}
        for rank in range(self._world_size):
            name = f"rank-{rank:05d}"
            sidecar, text = self._await_sidecar(target / f"{name}.json", abandoned)
            files[f"{name}.safetensors"] = {k: sidecar[k] for k in ("bytes", "sha256")}
            files[f"{name}.json"] = _digest(text)
            index[name] = sidecar["pieces"]
        files[INDEX] = _write_text(target / INDEX, {"pieces": index})
        marker = {
            "format": FORMAT_VERSION,
            "step": step,
            "world_size": self._world_size,
            "files": files,
            **header,
        }
        if self._fence is not None:
            self._fence.check()
        for path in target.iterdir():
            # What a killed save left here: temporary files, files of a larger group.
            if path.name not in files:
                path.unlink(missing_ok=True)
        write_atomically(target / MARKER, seal(marker))
        self._intact.note(target)
        record = header.get("train_state", {}).get("last_record", {})
        self._retention.apply(self._folder, step, record, self._intact)

    def _await_sidecar(
        self, path: Path, abandoned: threading.Event
    ) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + _PUBLISH_TIMEOUT_SECONDS
        while True:
            if path.is_file():
                text = path.read_bytes()
                sidecar = json.loads(text)
                if sidecar["attempt"] == self._attempt:
                    return sidecar, text
            if abandoned.is_set():
                raise OSError(f"{path}: its rank could not write it; checkpoint not published")
            if time.monotonic() > deadline:
                raise OSError(
                    f"{path}: not written by its rank within"
                    f" {_PUBLISH_TIMEOUT_SECONDS:.0f} s; checkpoint not published"
                )
            time.sleep(0.01)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write, hash and compare with what the storage gives back; gives the digest."""
    parts = file_parts(tensors)
    data = Hashed(parts)
    write_atomically(path, data)
    read_back(path, parts)
    return data.digest


def _write_text(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """Write JSON and compare with what the storage gives back; gives the digest."""
    text = json.dumps(content).encode()
    write_atomically(path, text)
    read_back(path, [memoryview(text)])
    return _digest(text)


def _digest(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
