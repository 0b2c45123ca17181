"""Saving until durable and loading, against torch.save with fsync and torch's own format (DCP).

    python -m tests.benchmarks.engine.checkpoint_speed [--megabytes 800] [--rounds 3] [--folder F]

Ours has checksums, is compared with what the storage gives back, and is verified before it is
loaded; the others do nothing of the kind. Wall-clock seconds, each side in turn, the best of all
rounds; loading after its files were put out of the page cache, and again from it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ifsq_train.checkpoint.format import Piece, step_folder
from ifsq_train.checkpoint.reader import Checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter

STATES = ("master", "exp_avg", "exp_avg_sq", "ema")


def main() -> None:
    """Print seconds and ratios (peer / ours)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=800)
    parser.add_argument("--tensors", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    size = args.megabytes * 2**20 // (4 * len(STATES) * args.tensors)
    state = {f"p{i}.{name}": torch.randn(size) for i in range(args.tensors) for name in STATES}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        saving = {"ours": ours_save(root, state), "torch.save": torch_save(root, state),
                  "dcp": lambda: dcp_save(root, state)}  # fmt: skip
        taken = best(saving, args.rounds, lambda: None)
        show("save until durable", taken)
        loading = {"ours": lambda: ours_load(root, state), "torch.save": lambda: torch_load(root),
                   "dcp": lambda: dcp_load(root, state)}  # fmt: skip
        show("load, cold cache", best(loading, args.rounds, lambda: forget(root)))
        show("load, warm cache", best(loading, args.rounds, lambda: None))


def best(
    runs: Mapping[str, Callable[[], object]], rounds: int, before: Callable[[], object]
) -> dict[str, float]:
    """Wall-clock seconds of each, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            before()
            began = time.perf_counter()
            run()
            taken[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in taken.items()}


def show(what: str, taken: dict[str, float]) -> None:
    """One line."""
    ours = taken["ours"]
    peers = [f"{n} {t:.2f} s ({t / ours:.2f})" for n, t in taken.items() if n != "ours"]
    print(f"{what}: ours {ours:.2f} s, {', '.join(peers)}", flush=True)


def forget(root: Path) -> None:
    """Put all files out of the page cache, where the system lets us."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def ours_save(root: Path, state: dict[str, Tensor]) -> Callable[[], None]:
    """The run's writer, which keeps its memory from save to save; each save is waited for."""
    writer = CheckpointWriter(
        root / "ours", rank=0, world_size=1, attempt="a", retention=Retention(1)
    )
    named = [(*key.rsplit(".", 1), value) for key, value in state.items()]
    pieces = [Piece("net", name, kind, (len(value),), 0, value) for name, kind, value in named]

    def save() -> None:
        shutil.rmtree(step_folder(root / "ours", 1), ignore_errors=True)
        writer.save(1, pieces, {}, {"optimizer_steps": {}})
        writer.settle()

    return save


def torch_save(root: Path, state: dict[str, Tensor]) -> Callable[[], None]:
    """One file, and fsync."""

    def save() -> None:
        with (root / "state.pt").open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())

    return save


def dcp_save(root: Path, state: dict[str, Tensor]) -> None:
    """torch.distributed.checkpoint, which syncs its files by default."""
    shutil.rmtree(root / "dcp", ignore_errors=True)
    dcp.save(dict(state), checkpoint_id=root / "dcp", no_dist=True)


def ours_load(root: Path, state: dict[str, Tensor]) -> None:
    """Verified, into the tensors."""
    checkpoint = Checkpoint(step_folder(root / "ours", 1))
    for key, values in state.items():
        parameter, name = key.rsplit(".", 1)
        checkpoint.read_into(values, "net", parameter, name, 0)


def torch_load(root: Path) -> None:
    """All tensors."""
    torch.load(root / "state.pt", weights_only=True)


def dcp_load(root: Path, state: dict[str, Tensor]) -> None:
    """Into the tensors."""
    dcp.load(dict(state), checkpoint_id=root / "dcp", no_dist=True)


if __name__ == "__main__":
    main()
