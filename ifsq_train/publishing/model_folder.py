"""`ifsq export --layout hf`: a network, a card that describes it, and pictures of what it does.

config.json          what `artifacts.pretrained` opens; written last
model.safetensors    the weights, float32, with plain parameter names
README.md            the card
recipe.yaml          the training recipe without the paths of this machine
preview.png          reconstructions of a tokenizer, samples of a generator
tokenizer/           a generator's tokenizer: config.json and model.safetensors
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from safetensors.torch import save
from torch import nn

from data_pipelines.documents import as_object, read_object
from data_pipelines.errors import UserError
from data_pipelines.storage.local import write_atomically
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import Writer, claim
from ifsq_train.artifacts.pretrained import (
    CONFIG,
    FORMAT_VERSION,
    GENERATOR_TYPE,
    TOKENIZER_FOLDER,
    TOKENIZER_TYPE,
    WEIGHTS,
)
from ifsq_train.artifacts.trained import (
    TrainedGenerator,
    TrainedTokenizer,
    Weights,
    load_generator,
    load_tokenizer,
    load_tokenizer_of,
)
from ifsq_train.checkpoint.reader import Checkpoint, open_checkpoint
from ifsq_train.config import GeneratorTaskConfig, TokenizerTaskConfig, TrainConfig, to_dict
from ifsq_train.config.load import validate_recipe
from ifsq_train.config.paths import with_paths
from ifsq_train.evaluation.result import read_result
from ifsq_train.publishing.model_card import CARD, CardFacts, model_card
from ifsq_train.publishing.pictures import PREVIEW, reconstructions, samples
from ifsq_train.versions import library_versions

RECIPE = "recipe.yaml"
EXPORTER = Writer("ifsq export", (CONFIG, WEIGHTS, CARD, RECIPE, PREVIEW, f"{TOKENIZER_FOLDER}/*"))


@dataclass(frozen=True)
class ExportOptions:
    """What is written besides the network.

    Attributes:
        weights: averaged, which are the live ones where no averages were kept, or live.
        tokenizer: of a generator: where its tokenizer lies; the recipe's where it names one.
        license: for the card, an identifier of the Hugging Face list.
        evaluation: a file of `ifsq evaluate` whose numbers the card shall show.
        images: dataset for a tokenizer's pictures; the run's own where it is on this machine.
        pictures: how many of them; 0 for none.
        overwrite: replace what was exported to the folder before.
    """

    weights: Weights = "averaged"
    tokenizer: str | None = None
    license: str = "unknown"
    evaluation: Path | None = None
    images: str | None = None
    pictures: int = 8
    overwrite: bool = False


def export_model(
    path: str | Path, output: Path, options: ExportOptions | None = None
) -> list[Path]:
    """Write a tokenizer or a generator as a folder that `from_pretrained` opens.

    Args:
        path: run folder or checkpoint folder.
        output: folder to write.
        options: see there.

    Returns:
        The files, config.json last.

    Raises:
        UserError: another kind of run, a generator without its tokenizer, or a folder that holds
            something else.
    """
    options = options or ExportOptions()
    checkpoint = open_checkpoint(path)
    recipe = validate_recipe(checkpoint.header["recipe"], source=str(checkpoint.folder))
    assert isinstance(recipe, TrainConfig)
    numbers = read_result(options.evaluation).metrics if options.evaluation is not None else {}
    if isinstance(recipe.task, TokenizerTaskConfig):
        trained: TrainedTokenizer | TrainedGenerator = load_tokenizer(path, options.weights)
        facts, tokenizer = tokenizer_facts(trained), None
    elif isinstance(recipe.task, GeneratorTaskConfig):
        trained = load_generator(path, options.weights)
        tokenizer = _tokenizer_of(trained, recipe, options)
        facts = _generator_facts(trained, checkpoint)
    else:
        raise UserError(f"{path}: a '{recipe.task.kind}' run; tokenizers and generators have a hub")
    _claim(output, facts, tokenizer, options)
    public = with_paths(recipe, _without_place)
    card = CardFacts(
        recipe=public,
        header=checkpoint.header,
        facts=facts,
        parameters=sum(value.numel() for value in trained.network.parameters()),
        license=options.license,
        evaluation=numbers,
        final=_final_numbers(Path(path)),
        picture=_picture(output, trained, tokenizer, recipe, options),
    )
    written = [output / PREVIEW] if card.picture else []
    written += _write_text(output / RECIPE, yaml.safe_dump(to_dict(public), sort_keys=False))
    written += _write_text(output / CARD, model_card(card))
    if tokenizer is not None:
        folder = output / TOKENIZER_FOLDER
        written += write_network(folder, tokenizer.network, tokenizer_facts(tokenizer))
    return written + write_network(output, trained.network, facts)


def write_network(folder: Path, network: nn.Module, facts: Mapping[str, Any]) -> list[Path]:
    """``model.safetensors``, then ``config.json``, which makes the folder complete."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    text = json.dumps(dict(facts), indent=1, allow_nan=False) + "\n"
    return [folder / WEIGHTS, *_write_text(folder / CONFIG, text)]


def tokenizer_facts(trained: Any) -> dict[str, Any]:
    """``config.json`` of a tokenizer."""
    return _facts(TOKENIZER_TYPE, trained) | {"model": to_dict(trained.config)}


def _generator_facts(trained: TrainedGenerator, checkpoint: Checkpoint) -> dict[str, Any]:
    return _facts(GENERATOR_TYPE, trained) | {
        "task": to_dict(with_paths(trained.task, _without_place)),
        "spec": checkpoint.header["task"],
        "classes": None if trained.classes is None else list(trained.classes),
    }


def _facts(kind: str, trained: Any) -> dict[str, Any]:
    return {
        "model_type": kind,
        "format_version": FORMAT_VERSION,
        "fingerprint": trained.fingerprint,
        "step": trained.step,
        "weights": trained.weights,
        "ifsq_train_version": library_versions().get("ifsq-train", "unknown"),
    }


def _tokenizer_of(
    generator: TrainedGenerator, recipe: TrainConfig, options: ExportOptions
) -> TrainedTokenizer:
    place = options.tokenizer or getattr(recipe.task, "tokenizer", None)
    place = place or getattr(recipe.data, "tokenizer", None)
    if place is None:
        raise UserError(
            "a generator is exported with its tokenizer, which its recipe does not name; give"
            " --tokenizer RUN"
        )
    wanted = generator.spec.tokenizer_fingerprint
    found = load_tokenizer_of(place, wanted)
    if found.fingerprint != wanted:
        raise UserError(
            f"--tokenizer {place} is {found.fingerprint[:12]}, the generator was trained with"
            f" {wanted[:12]}; give that one"
        )
    return found


def _claim(output: Path, facts: Mapping[str, Any], tokenizer: Any, options: ExportOptions) -> None:
    job = {
        "layout": "hf",
        "fingerprint": facts["fingerprint"],
        "tokenizer": None if tokenizer is None else tokenizer.fingerprint,
    }
    finished = (output / CONFIG).is_file()
    claim(open_storage(output), EXPORTER, job, finished=finished, overwrite=options.overwrite)


def _picture(
    output: Path,
    trained: Any,
    tokenizer: TrainedTokenizer | None,
    recipe: TrainConfig,
    options: ExportOptions,
) -> bool:
    """Whether a preview was written."""
    if not options.pictures:
        return False
    output.mkdir(parents=True, exist_ok=True)
    target = output / PREVIEW
    if tokenizer is not None:
        return samples(target, trained, tokenizer, options.pictures)
    return reconstructions(target, trained, recipe, options.images, options.pictures)


def _final_numbers(run: Path) -> dict[str, float]:
    """Numbers of the last logged step, where `run` is the folder of a finished run."""
    try:
        found = as_object(read_object(run / "result.json", allow_nan=True)["final"], "final")
    except (UserError, KeyError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def _without_place(path: str) -> str:
    """A local path's last part: where things lie on this machine is nobody's business."""
    return path if "://" in path else PurePosixPath(path).name


def _write_text(path: Path, text: str) -> list[Path]:
    write_atomically(path, text.encode())
    return [path]
