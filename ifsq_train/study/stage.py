"""A stage of a study: a checked recipe whose digest says what its result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args

from pydantic import Field, TypeAdapter

from ifsq_train.config import EvaluateConfig, PrecomputeConfig, SampleConfig, TrainConfig
from ifsq_train.config.load import validate_model
from ifsq_train.config.study import (
    STAGE_PREFIX,
    CostStage,
    DistributionStage,
    ImagesStage,
    ToyStage,
)

FORMAT_VERSION = 1
StageConfig = (
    TrainConfig
    | PrecomputeConfig
    | SampleConfig
    | EvaluateConfig
    | ImagesStage
    | DistributionStage
    | ToyStage
    | CostStage
)
_ADAPTER: TypeAdapter[StageConfig] = TypeAdapter(
    Annotated[StageConfig, Field(discriminator="kind")]
)
KINDS: tuple[str, ...] = tuple(
    get_args(model.model_fields["kind"].annotation)[0] for model in get_args(StageConfig)
)
_PLACEHOLDERS = {
    "train": {"name": "stage", "output": "stage"},
    "precompute": {"output": "stage"},
    "sample": {"output": "stage"},
    "evaluate": {"output": "stage"},
}
# What changes no number of the result.
_IGNORED = ("name", "output", "tags", "log_every_steps", "watchdog_seconds", "dry_run", "profile")
_IGNORED_OF_DATA = ("prefetch_batches", "reader_threads", "decode_threads", "decode_actors")


@dataclass(frozen=True)
class Stage:
    """One piece of work, equal for all variants whose recipes and inputs are equal.

    Attributes:
        name: in the study.
        digest: sha256 (hex) over recipe and inputs.
        recipe: checked; text ``stage:DIGEST`` or ``stage:DIGEST@STEP`` stands for an input's
            output.
        inputs: digests of the stages that must be done before.
        variant: the first variant that needs it, in words.
    """

    name: str
    digest: str
    recipe: StageConfig
    inputs: tuple[str, ...]
    variant: str

    @property
    def kind(self) -> str:
        """Of the recipe."""
        return self.recipe.kind

    @property
    def folder(self) -> str:
        """Name of its folder and of its record."""
        return f"{self.kind}-{self.digest[:16]}"


def check_stage(values: Mapping[str, Any], source: str) -> StageConfig:
    """A stage's recipe, checked.

    Raises:
        UserError: one line per fault.
    """
    found = dict(values)
    found = {**_PLACEHOLDERS.get(str(found.get("kind")), {}), **found}
    return validate_model(_ADAPTER, found, source)


def make_stage(name: str, recipe: StageConfig, variant: str) -> Stage:
    """A stage whose references to others are digests already."""
    values = science(recipe)
    text = json.dumps({"format": FORMAT_VERSION, "recipe": values}, sort_keys=True)
    inputs = dict.fromkeys(reference.partition("@")[0] for _, reference in references(values))
    digest = hashlib.sha256(text.encode()).hexdigest()
    return Stage(name, digest, recipe, tuple(inputs), variant)


def science(recipe: StageConfig) -> dict[str, Any]:
    """What decides a stage's result, without defaults, so that a new option changes no digest.

    A default that changes gives another result under the same digest: then `FORMAT_VERSION` has to
    grow (a test compares all defaults with those of this version).
    """
    values = recipe.model_dump(mode="json", exclude_defaults=True)
    values["kind"] = recipe.kind
    for key in _IGNORED:
        values.pop(key, None)
    data = values.get("data")
    if isinstance(data, dict):
        for key in _IGNORED_OF_DATA:
            data.pop(key, None)
    return values


def references(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and reference (without prefix) of every ``stage:`` text in a recipe."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from references(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        for place, value in enumerate(node):
            yield from references(value, f"{path}.{place}")
    elif isinstance(node, str) and node.startswith(STAGE_PREFIX):
        yield path, node.removeprefix(STAGE_PREFIX)


def replaced(node: Any, change: Mapping[str, str]) -> Any:
    """The same values with every ``stage:REFERENCE`` exchanged for what `change` says of it."""
    if isinstance(node, dict):
        return {key: replaced(value, change) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [replaced(value, change) for value in node]
    if isinstance(node, str) and node.startswith(STAGE_PREFIX):
        return change[node.removeprefix(STAGE_PREFIX)]
    return node
