"""Checkpoints that load at any world size and ZeRO stage, and that a kill cannot spoil.

Layout of ``checkpoints/step-00000500/``::

    rank-00000.safetensors   1-D fp32 pieces of parameters, optimizer moments and averages
    rank-00000.json          what is in it (parameter, state, start, length) and its checksum
    index.json               what is in the files of all ranks (checkpoints of 1.0 have none)
    shared.safetensors       buffers, written by rank 0
    checkpoint.json          published last: train state, recipe, versions, all checksums

A folder without ``checkpoint.json`` does not exist for readers. Every rank writes only what it
owns (``checkpoint_writer``). Nothing is pickled. This module reads.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError
from ifsq_train.checkpoint import schema
from ifsq_train.checkpoint.format import (
    INDEX,
    MARKER,
    STEP_FOLDER,
    CheckpointError,
    list_steps,
    step_folder,
    unseal,
)

logger = logging.getLogger(__name__)

_VERIFYING_THREADS = min(8, os.cpu_count() or 1)


class Checkpoint:
    """A complete, verified checkpoint.

    Args:
        folder: its folder.
        verify: read every byte against the checksums; False where `verify` is called later.

    Raises:
        CheckpointError: not there, half there, or any byte is not what was written.
    """

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.folder = folder
        self._opened: dict[str, Any] = {}
        marker = folder / MARKER
        if not folder.is_dir():
            raise CheckpointError(f"{folder}: no such checkpoint folder")
        if not marker.is_file():
            raise CheckpointError(
                f"{folder}: half-written checkpoint ({MARKER} is missing);"
                " use an older one or let the run write it again"
            )
        try:
            self.header = unseal(marker.read_bytes(), marker)
            _check_files(folder, self.header)
            if verify:
                self.verify()
            self._index = self._read_index()
        except OSError as error:
            raise CheckpointError(f"{error.filename or folder}: {error.strerror}") from None
        except SafetensorError as error:
            raise CheckpointError(f"{folder}: not readable ({error})") from None

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

    def _read_index(self) -> dict[tuple[str, str, str], list[tuple[int, int, str]]]:
        index: dict[tuple[str, str, str], list[tuple[int, int, str]]] = {}
        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        for name, path, pieces in self._pieces_of_ranks():
            for piece in pieces:
                key = (piece["network"], piece["parameter"], piece["state"])
                entry = (piece["start"], piece["length"], f"{name}.safetensors")
                index.setdefault(key, []).append(entry)
                shape = tuple(piece["shape"])
                if self._shapes.setdefault(key[:2], shape) != shape:
                    raise CheckpointError(f"{path}: {key[0]}.{key[1]} has two shapes")
        for key, entries in index.items():
            entries.sort()
            _check_pieces(self.folder, key, entries, math.prod(self._shapes[key[:2]]))
        return index

    def _pieces_of_ranks(self) -> Iterator[tuple[str, Path, list[Any]]]:
        """Name of a rank's files, the file that lists what is in them, and the list."""
        if INDEX in self.header["files"]:
            path = self.folder / INDEX
            for name, pieces in _read_index_file(path, self.header).items():
                yield name, path, pieces
            return
        for rank in range(self.header["world_size"]):
            name = f"rank-{rank:05d}"
            path = self.folder / f"{name}.json"
            yield name, path, _read_pieces(path)

    def verify(self, rank: int = 0, world_size: int = 1) -> None:
        """Read a rank's share of the files against their checksums; all of them by default.

        Raises:
            CheckpointError: one is missing, cannot be read or is not what was written.
        """
        files = self.header["files"]
        share = sorted(files)[rank::world_size]
        try:
            verify_files(self.folder, {name: files[name] for name in share})
        except OSError as error:
            raise CheckpointError(f"{error.filename or self.folder}: {error.strerror}") from None

    def read(self, network: str, parameter: str, state: str, start: int, length: int) -> Tensor:
        """Elements [start, start + length) of a state, fp32 1-D, from whichever pieces hold them.

        Raises:
            CheckpointError: as `read_into`.
        """
        result = torch.empty(length)
        self.read_into(result, network, parameter, state, start)
        return result

    def read_into(
        self, values: Tensor, network: str, parameter: str, state: str, start: int
    ) -> None:
        """Fill `values`, fp32 1-D on any device, with the elements of a state from `start` on.

        Raises:
            CheckpointError: the parameter, the state or some of the elements are not in it.
        """
        length, covered = values.numel(), 0
        for first, count, file in self._index.get((network, parameter, state), []):
            low, high = max(start, first), min(start + length, first + count)
            if low >= high:
                continue
            part = self._part(file, f"{network}/{parameter}/{state}@{first}", count)
            values[low - start : high - start] = part[low - first : high - first]
            covered += high - low
        if covered != length:
            raise CheckpointError(
                f"{self.folder}: {network}.{parameter} ({state}) has {covered} of the {length}"
                " elements asked for; the model differs from the one that was saved"
            )

    def _part(self, file: str, key: str, count: int) -> Any:
        """A slice of a piece's tensor, fp32 [count], read when it is indexed."""
        path = self.folder / file
        try:
            if file not in self._opened:
                # Kept open: every opening reads the index of all pieces in the file.
                self._opened[file] = safe_open(path, "pt")
            found = self._opened[file].get_slice(key)
            if list(found.get_shape()) != [count] or found.get_dtype() != "F32":
                raise CheckpointError(f"{path}: {key} is not {count} fp32 values")
            return found
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: {key} cannot be read ({error})") from None

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
        path = self.folder / "shared.safetensors"
        try:
            with safe_open(path, "pt") as handle:
                return {
                    key.removeprefix(f"{prefix}/"): handle.get_tensor(key)
                    for key in handle.keys()  # noqa: SIM118 - not a mapping
                    if key.startswith(f"{prefix}/")
                }
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read ({error})") from None


def verify_files(folder: Path, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Read files against their checksums.

    Args:
        folder: of the checkpoint.
        files: "bytes" and "sha256" by name, as the marker has them.

    Raises:
        CheckpointError: one is missing or is not what was written.
        OSError: one cannot be read.
    """
    with ThreadPoolExecutor(_VERIFYING_THREADS, thread_name_prefix="verify") as threads:
        checks = [threads.submit(_verify, folder / name, digest) for name, digest in files.items()]
    for check in checks:
        check.result()


def _verify(path: Path, expected: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing from the checkpoint")
    if path.stat().st_size != expected["bytes"]:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, expected {expected['bytes']}")
    with path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
            raise CheckpointError(f"{path}: contents do not match their checksum")


def _check_files(folder: Path, header: Mapping[str, Any]) -> None:
    """Raises CheckpointError where the marker does not name every rank's files."""
    ranks = [f"rank-{rank:05d}" for rank in range(header["world_size"])]
    wanted = {f"{rank}.{kind}" for rank in ranks for kind in ("json", "safetensors")}
    if missing := (wanted | {"shared.safetensors"}) - set(header["files"]):
        raise CheckpointError(f"{folder / MARKER}: does not name {min(missing)}")
    if folder.name != step_folder(folder.parent, header["step"]).name and STEP_FOLDER.fullmatch(
        folder.name
    ):
        raise CheckpointError(f"{folder}: holds step {header['step']}; it was renamed or copied")


def _read_pieces(path: Path) -> list[Any]:
    try:
        sidecar = parse_json(path.read_bytes(), str(path))
        return checked(schema.SIDECAR, sidecar, str(path))["pieces"]
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _read_index_file(path: Path, header: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Pieces by rank; small, and so always compared with its checksum."""
    text = path.read_bytes()
    if hashlib.sha256(text).hexdigest() != header["files"][INDEX]["sha256"]:
        raise CheckpointError(f"{path}: contents do not match their checksum")
    try:
        return checked(schema.INDEX, parse_json(text, str(path)), str(path))["pieces"]
    except DataError as error:
        raise CheckpointError(str(error)) from None


def _check_pieces(
    folder: Path, key: tuple[str, ...], entries: list[tuple[int, int, str]], size: int
) -> None:
    """Raises CheckpointError where sorted pieces overlap or go beyond their parameter."""
    end = 0
    for start, length, file in entries:
        if start < end or start + length > size:
            raise CheckpointError(
                f"{folder / file}: {'.'.join(key)}: elements {start} to {start + length} overlap"
                f" others or go beyond the {size} of the parameter"
            )
        end = start + length


def newest_checkpoint(
    folder: Path, *, verify: bool = True, without: Collection[int] = ()
) -> Checkpoint | None:
    """The newest one that is intact; a damaged one is skipped with a loud warning.

    Args:
        folder: the run's ``checkpoints``.
        verify: read all of it; without, only marker and index are known to be what was written.
        without: steps that are not looked at.
    """
    for step in reversed([step for step in list_steps(folder) if step not in without]):
        try:
            return Checkpoint(step_folder(folder, step), verify=verify)
        except CheckpointError as error:
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
