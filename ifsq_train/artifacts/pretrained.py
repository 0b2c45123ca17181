"""One network per folder, as model hubs store them: ``config.json`` and ``model.safetensors``.

The folder says everything that is needed to use the network; no run, recipe or path of another
machine is. `ifsq_train.publishing` writes it, `trained` opens it like a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from data_pipelines.documents import read_object
from data_pipelines.errors import DataError, UserError
from ifsq_train.config import GeneratorTaskConfig, TaskConfig, TokenizerConfig
from ifsq_train.config.load import validate_model
from ifsq_train.models.weight_files import refuse_values

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
"""Of a generator's folder: the tokenizer that it belongs to, in the same layout."""
TOKENIZER_TYPE, GENERATOR_TYPE = "ifsq_tokenizer", "ifsq_generator"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Pretrained:
    """What a folder says of its network; its weights are read by `fill`.

    Attributes:
        folder: where it lies.
        facts: ``config.json``.
    """

    folder: Path
    facts: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps of the run it comes from."""
        return int(self.facts.get("step", 0))

    @property
    def weights(self) -> str:
        """``averaged`` or ``live``."""
        return str(self.facts.get("weights", "averaged"))

    def refuse_other_weights(self, wanted: str) -> None:
        """Raise UserError where the live weights are wanted and it has averages, which are all
        it has."""
        if wanted == "live" and self.weights == "averaged":
            raise UserError(
                f"{self.folder} holds averaged weights only; export the run again with"
                " --weights live"
            )

    def tokenizer(self) -> TokenizerConfig:
        """Its architecture.

        Raises:
            UserError: of another kind of network, or with keys or values nobody knows.
        """
        self._check_type(TOKENIZER_TYPE, "a tokenizer")
        values = {**self.facts.get("model", {})}
        return validate_model(TypeAdapter(TokenizerConfig), values, str(self.folder / CONFIG))

    def generator(self) -> tuple[GeneratorTaskConfig, dict[str, Any]]:
        """Its part of a recipe, and what it speaks as `GeneratorSpec.from_dict` reads it.

        Raises:
            UserError: as `tokenizer`.
        """
        self._check_type(GENERATOR_TYPE, "a generator")
        values = {**self.facts.get("task", {})}
        task = validate_model(TypeAdapter(TaskConfig), values, str(self.folder / CONFIG))
        spec = self.facts.get("spec")
        if not isinstance(task, GeneratorTaskConfig) or not isinstance(spec, dict):
            raise DataError(f"{self.folder / CONFIG}: describes no generator; export it again")
        return task, spec

    def fill(self, network: nn.Module) -> None:
        """The weights into a network of this architecture, then in eval mode and frozen.

        Raises:
            DataError: missing, damaged, or of another architecture.
        """
        fill(network, self.folder / WEIGHTS)

    def check(self, fingerprint: str) -> None:
        """Raise DataError where the filled network is not the one that was exported."""
        if fingerprint != (stored := self.facts.get("fingerprint")):
            raise DataError(
                f"{self.folder / WEIGHTS}: fingerprint {fingerprint[:12]}, {CONFIG} says"
                f" {str(stored)[:12]}; the files do not belong together or are damaged"
            )

    def _check_type(self, wanted: str, words: str) -> None:
        found = self.facts.get("model_type")
        if found != wanted:
            raise UserError(f"{self.folder}: model_type is '{found}'; {words} is needed")


def open_pretrained(folder: Path) -> Pretrained | None:
    """The network's folder at `folder`; None where there is no such layout.

    Raises:
        DataError: its config.json cannot be read, or is of another version of the layout.
    """
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        return None
    facts = read_object(folder / CONFIG)
    version = facts.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(
            f"{folder / CONFIG}: format_version {version} (model_type {facts.get('model_type')})"
            f" found, {FORMAT_VERSION} is read here; is it a folder of `ifsq export`?"
        )
    return Pretrained(folder, facts)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        DataError: missing, damaged, or with values that are not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; export the weights again")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole safetensors file ({error})") from None
    try:
        for name, value in tensors.items():
            refuse_values(name, value, path)
    except ValueError as error:
        raise DataError(str(error)) from None
    return tensors


def fill(network: nn.Module, path: Path) -> None:
    """Weights of a file into a network, which is then in eval mode and frozen.

    Raises:
        DataError: missing, damaged, or of another architecture.
    """
    tensors = read_weights(path)
    try:
        network.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise DataError(f"{path}: not the weights of this architecture: {first}") from None
    network.eval().requires_grad_(False)
