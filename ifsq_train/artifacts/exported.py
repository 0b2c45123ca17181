"""Tokenizers opened from wherever they lie: a run, a checkpoint, a folder of exported weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired

from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from typing_extensions import TypedDict

from data_pipelines.documents import Count, Name, Sha256, checked, read_json
from data_pipelines.errors import DataError, UserError
from data_pipelines.regular_files import open_regular
from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.artifacts.pretrained import fill
from ifsq_train.artifacts.trained import TrainedTokenizer, Weights, load_tokenizer
from ifsq_train.config import TokenizerTaskConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.config.tasks import AUTOENCODER

RECIPE = "recipe.json"


def open_tokenizer(path: str | Path, weights: Weights = "averaged") -> TrainedTokenizer:
    """Open a tokenizer.

    Args:
        path: run folder, checkpoint folder, or folder of `ifsq export` or `ifsq checkpoint export`.
        weights: the averaged ones, which are the live ones where none were kept, or the live ones.

    Raises:
        UserError: no tokenizer there, or not whole.
    """
    folder = Path(path)
    if folder.is_file():
        raise UserError(
            f"{folder} is a file; give a run folder, a checkpoint folder or a folder of"
            " `ifsq export`. `ifsq checkpoint import` makes a run folder of a released file"
        )
    if (folder / RECIPE).is_file():
        return _of_plain_export(folder, weights)
    return load_tokenizer(folder, weights)


def _of_plain_export(folder: Path, weights: Weights) -> TrainedTokenizer:
    """A folder with recipe.json and a safetensors file per network."""
    export = read_export(folder)
    task = export.recipe.task
    if not isinstance(task, TokenizerTaskConfig):
        raise UserError(f"{folder}: weights of a '{task.kind}' run; a tokenizer's are needed")
    averaged = folder / f"{AUTOENCODER}-ema.safetensors"
    used: Weights = "averaged" if weights == "averaged" and averaged.is_file() else "live"
    file = averaged if used == "averaged" else folder / f"{AUTOENCODER}.safetensors"
    network = build_tokenizer(task.model)
    fill(network, file)
    return TrainedTokenizer(network, task.model, network.fingerprint(), export.step, used)


class _Document(TypedDict):
    """The shape of recipe.json; earlier releases wrote only the first two."""

    recipe: dict[str, Any]
    task: NotRequired[dict[str, Any] | None]
    step: NotRequired[Count]
    sha256: NotRequired[dict[Name, Sha256]]


_DOCUMENT: TypeAdapter[_Document] = TypeAdapter(_Document)


@dataclass(frozen=True)
class Export:
    """What a folder of exported weights says of itself.

    Attributes:
        folder: where it lies.
        recipe: of the run.
        task: what a checkpoint's header says of the task; empty for tokenizers.
        step: optimizer steps of the run.
        files: weights by stem, such as ``generator-ema``.
    """

    folder: Path
    recipe: TrainConfig
    task: Mapping[str, Any]
    step: int
    files: Mapping[str, Path]


def read_export(folder: Path) -> Export:
    """Open a folder of `ifsq checkpoint export`; every byte is compared with its checksums.

    Raises:
        UserError: no such folder, a file of it missing or changed, or no training's recipe.
    """
    place = folder / RECIPE
    found = checked(_DOCUMENT, read_json(place), str(place))
    recipe = validate_recipe(found["recipe"], source=str(place))
    if not isinstance(recipe, TrainConfig):
        raise UserError(f"{place}: a recipe of kind '{recipe.kind}'; a training's is needed")
    files = {path.stem: path for path in sorted(folder.glob("*.safetensors"))}
    for name, digest in found.get("sha256", {}).items():
        path = files.get(name.removesuffix(".safetensors"))
        if path is None or path.name != name:
            raise DataError(f"{folder}: {name} is missing; export the weights again")
        if file_digest(path) != digest:
            raise DataError(f"{path}: not the bytes that were exported; export the weights again")
    if not files:
        raise DataError(f"{folder}: no *.safetensors file; export the weights again")
    step = found["step"] if "step" in found else _step_of(next(iter(files.values())))
    return Export(folder, recipe, found.get("task") or {}, step, files)


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _step_of(path: Path) -> int:
    """Optimizer steps, from the metadata of a weight file."""
    try:
        with safe_open(path, "pt") as file:
            return int((file.metadata() or {}).get("step", 0))
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from None
