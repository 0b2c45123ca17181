"""Checkpoints that load at any world size and ZeRO stage, and that a kill cannot spoil.

Layout of ``checkpoints/step-00000500/``::

    rank-00000.safetensors   1-D fp32 pieces of parameters, optimizer moments and averages
    rank-00000.json          what is in it (parameter, state, start, length) and its checksum
    shared.safetensors       buffers, written by rank 0
    checkpoint.json          published last: train state, recipe, versions, all checksums

A folder without ``checkpoint.json`` does not exist for readers. Every rank writes only what it
owns (``checkpoint_writer``). Nothing is pickled. This module reads.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ifsq_train.checkpoint.format import (
    FORMAT_VERSION,
    MARKER,
    STEP_FOLDER,
    CheckpointError,
    list_steps,
    step_folder,
    unseal,
)

logger = logging.getLogger(__name__)


class Checkpoint:
    """A complete, verified checkpoint.

    Args:
        folder: its folder.
        verify: read every byte against the checksums; False where another rank just has.

    Raises:
        CheckpointError: not there, half there, or any byte is not what was written.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        marker = folder / MARKER
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")
        if not marker.is_file():
            raise CheckpointError(
                f"{folder}: half-written checkpoint ({MARKER} is missing);"
                " use an older one or let the run write it again"
            )
        self.header = unseal(marker.read_bytes(), marker)
        if self.header.get("format") != FORMAT_VERSION:
            raise CheckpointError(
                f"{folder}: format {self.header.get('format')}, this program reads {FORMAT_VERSION}"
            )
        if verify:
            self._verify()
        self._index = self._read_index()

    @property
    def step(self) -> int:
        """Optimizer steps done when it was taken."""
        return int(self.header["step"])

    def shape(self, network: str, parameter: str) -> tuple[int, ...] | None:
        """Full shape of a parameter; None where the checkpoint does not have it."""
        return self._shapes.get((network, parameter))

    def networks(self) -> list[str]:
        """Names of the networks in it."""
        return sorted({network for network, _, _ in self._index})

    def has_average(self, network: str) -> bool:
        """Whether averaged weights of the network were kept."""
        return any(key[0] == network and key[2] == "ema" for key in self._index)

    def _verify(self) -> None:
        for name, expected in self.header["files"].items():
            path = self.folder / name
            if not path.is_file():
                raise CheckpointError(f"{path}: missing from the checkpoint")
            if path.stat().st_size != expected["bytes"]:
                raise CheckpointError(
                    f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}"
                )
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                    raise CheckpointError(f"{path}: contents do not match their checksum")

    def _read_index(self) -> dict[tuple[str, str, str], list[tuple[int, int, str]]]:
        index: dict[tuple[str, str, str], list[tuple[int, int, str]]] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for rank in range(self.header["world_size"]):
            sidecar = json.loads((self.folder / f"rank-{rank:05d}.json").read_bytes())
            for piece in sidecar["pieces"]:
                key = (piece["network"], piece["parameter"], piece["state"])
                entry = (piece["start"], piece["length"], f"rank-{rank:05d}.safetensors")
                index.setdefault(key, []).append(entry)
                self._shapes[key[:2]] = tuple(piece["shape"])
        return index

    def read(self, network: str, parameter: str, state: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of a state, fp32 1-D, from whichever pieces hold them.

        Raises:
            CheckpointError: the parameter, the state or some of the elements are not in it.
        """
        result = torch.empty(length)
        covered = 0
        for first, count, file in self._index.get((network, parameter, state), []):
            low, high = max(start, first), min(start + length, first + count)
            if low >= high:
                continue
            with safe_open(self.folder / file, "pt") as handle:
                piece = handle.get_slice(f"{network}/{parameter}/{state}@{first}")
                result[low - start : high - start] = piece[low - first : high - first]
            covered += high - low
        if covered != length:
            raise CheckpointError(
                f"{self.folder}: {network}.{parameter} ({state}) has {covered} of the {length}"
                " elements asked for; the model differs from the one that was saved"
            )
        return result

    def weights(self, network: str, state: str = "master") -> dict[str, Tensor]:
        """Whole fp32 parameters of a network by name; ``state="ema"`` for the averaged ones.

        Raises:
            CheckpointError: the network or its averages are not in the checkpoint.
        """
        names = [key[1] for key in self._index if key[0] == network and key[2] == state]
        if not names:
            raise CheckpointError(
                f"{self.folder}: no '{state}' weights of network '{network}';"
                f" it has {', '.join(self.networks())}"
            )
        result = {}
        for name in names:
            shape = self._shapes[network, name]
            size = torch.Size(shape).numel()
            result[name] = self.read(network, name, state, 0, size).reshape(shape)
        return result

    def buffers(self, prefix: str) -> dict[str, Tensor]:
        """Un-sharded tensors whose name starts with ``prefix/``, without the prefix."""
        with safe_open(self.folder / "shared.safetensors", "pt") as handle:
            return {
                key.removeprefix(f"{prefix}/"): handle.get_tensor(key)
                for key in handle.keys()  # noqa: SIM118 - not a mapping
                if key.startswith(f"{prefix}/")
            }


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest one that is intact; a damaged one is skipped with a loud warning."""
    for step in reversed(list_steps(folder)):
        try:
            return Checkpoint(step_folder(folder, step))
        except (CheckpointError, SafetensorError, OSError) as error:
            logger.warning("skipping damaged checkpoint: %s", error)
    return None


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A checkpoint the user named: the folder itself, or a run folder (its newest one).

    Raises:
        CheckpointError: nothing usable is there; says what was found.
    """
    folder = Path(path)
    if (folder / MARKER).is_file() or STEP_FOLDER.fullmatch(folder.name):
        return Checkpoint(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder; give a run folder or a checkpoint in it")
    checkpoints = folder if folder.name == "checkpoints" else folder / "checkpoints"
    found = newest_checkpoint(checkpoints)
    if found is None:
        raise CheckpointError(
            f"{folder}: no complete checkpoint in it; give a run folder with"
            f" {checkpoints.name}/step-*/{MARKER}"
        )
    return found
