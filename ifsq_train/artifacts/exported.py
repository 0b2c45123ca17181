"""Tokenizers opened from wherever they lie: a run, a checkpoint, a folder of exported weights."""

from __future__ import annotations

from pathlib import Path

from data_pipelines.errors import UserError
from ifsq_train.artifacts.networks import build_tokenizer
from ifsq_train.artifacts.pretrained import fill, read_document
from ifsq_train.artifacts.trained import TrainedTokenizer, Weights, load_tokenizer
from ifsq_train.config import TokenizerTaskConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.config.tasks import AUTOENCODER

RECIPE = "recipe.json"


def open_tokenizer(path: str | Path, weights: Weights = "averaged") -> TrainedTokenizer:
    """Open a tokenizer.

    Args:
        path: run folder, checkpoint folder, or folder of `ifsq export`.
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
    found = read_document(folder / RECIPE)
    recipe = validate_recipe(found.get("recipe") or {}, source=str(folder / RECIPE))
    task = recipe.task if isinstance(recipe, TrainConfig) else None
    if not isinstance(task, TokenizerTaskConfig):
        kind = recipe.kind if task is None else task.kind
        raise UserError(f"{folder}: weights of a '{kind}' run; a tokenizer's are needed")
    averaged = folder / f"{AUTOENCODER}-ema.safetensors"
    used: Weights = "averaged" if weights == "averaged" and averaged.is_file() else "live"
    file = averaged if used == "averaged" else folder / f"{AUTOENCODER}.safetensors"
    network = build_tokenizer(task.model)
    fill(network, file)
    step = _step_of(file)
    return TrainedTokenizer(network, task.model, network.fingerprint(), step, used)


def _step_of(path: Path) -> int:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return int((file.metadata() or {}).get("step", 0))
