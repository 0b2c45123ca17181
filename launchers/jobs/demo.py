"""The demo as a job: the whole pipeline, pack to report, on one claim."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ValidationError

from data_pipelines.errors import UserError
from ifsq_train.config import Config
from ifsq_train.config.secrets import refuse_secrets


class DemoConfig(Config):
    """What `ifsq submit demo` runs."""

    kind: Literal["demo"] = "demo"
    output: str = "runs/demo"
    """Folder of everything the demo makes."""
    images: str | None = None
    """Folder of class folders with images; scikit-learn's digits if left out."""
    steps: int | None = None
    """Of both trainings; the recipes' own if left out."""


def demo_from_overrides(overrides: list[str]) -> DemoConfig:
    """``key=value`` changes as for recipes.

    Raises:
        UserError: a key or value the demo does not take.
    """
    values: dict[str, Any] = {}
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator:
            raise UserError(f"'{item}' is not key=value; the demo takes output, images and steps")
        values[key] = value
    return parse_demo(values)


def parse_demo(values: dict[str, Any]) -> DemoConfig:
    """The demo's settings from plain values.

    Raises:
        UserError: a key or value the demo does not take.
    """
    refuse_secrets(values, "demo")
    try:
        return DemoConfig.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(map(str, fault["loc"]))
        raise UserError(
            f"demo: {key}: {fault['msg']}, found {fault['input']!r}; it takes output, images, steps"
        ) from error
