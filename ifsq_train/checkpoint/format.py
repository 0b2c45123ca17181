"""The checkpoint format: folder names, marker, sealed JSON, names of stored states."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import DataError, UserError
from ifsq_train.checkpoint import schema

FORMAT_VERSION = 1


MARKER = "checkpoint.json"
INDEX = "index.json"
"""What is in the files of all ranks, so that a reader opens one file for it."""


STEP_FOLDER = re.compile(r"step-(\d{8,})$")


class CheckpointError(UserError):
    """A checkpoint is missing, half there or damaged; says which file and what to do."""


def seal(marker: dict[str, Any]) -> bytes:
    """JSON with its own checksum, so that damage to the marker itself is seen."""
    body = json.dumps(marker, sort_keys=True)
    return json.dumps(
        {"sha256": hashlib.sha256(body.encode()).hexdigest(), "checkpoint": marker},
        sort_keys=True,
        indent=1,
    ).encode()


def unseal(text: bytes, path: Path) -> dict[str, Any]:
    """What `seal` was given.

    Raises:
        CheckpointError: damaged, or not a marker of a format this program reads.
    """
    try:
        sealed = parse_json(text, str(path), allow_nan=True)
    except DataError as error:
        raise CheckpointError(f"{error}: not a checkpoint marker, or cut short") from None
    if not isinstance(sealed, dict) or not {"sha256", "checkpoint"} <= set(sealed):
        raise CheckpointError(f"{path}: not a checkpoint marker, or cut short")
    marker = sealed["checkpoint"]
    body = json.dumps(marker, sort_keys=True)
    if sealed["sha256"] != hashlib.sha256(body.encode()).hexdigest():
        raise CheckpointError(f"{path}: contents do not match their checksum")
    if isinstance(marker, dict) and marker.get("format") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format {str(marker.get('format'))[:40]}, this program reads {FORMAT_VERSION}"
        )
    try:
        checked(schema.MARKER, marker, str(path))
    except DataError as error:
        raise CheckpointError(str(error)) from None
    return marker


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step lives."""
    return folder / f"step-{step:08d}"


def list_steps(folder: Path) -> list[int]:
    """Steps that have a published marker, oldest first; says nothing of their integrity."""
    if not folder.is_dir():
        return []
    matches = (STEP_FOLDER.fullmatch(path.name) for path in folder.iterdir())
    steps = sorted(int(match[1]) for match in matches if match)
    return [step for step in steps if (step_folder(folder, step) / MARKER).is_file()]


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
        """This piece's entry in the rank's index file."""
        return {
            "network": self.network,
            "parameter": self.parameter,
            "state": self.state,
            "shape": list(self.shape),
            "start": self.start,
            "length": self.values.numel(),
        }


# Names of the fp32 states of a parameter that a checkpoint keeps.
MASTER, FIRST_MOMENT, SECOND_MOMENT, AVERAGE = "master", "exp_avg", "exp_avg_sq", "ema"
