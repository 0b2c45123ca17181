"""A job's request, read back from the environment of its entrypoint."""

from __future__ import annotations

import os
from typing import Any

from pydantic import TypeAdapter

from data_pipelines.documents import checked, parse_json
from data_pipelines.errors import UserError
from data_pipelines.yaml_documents import parse_yaml
from ifsq_train.config import (
    LaunchConfig,
)
from ifsq_train.config.load import Recipe, validate_recipe
from ifsq_train.plugins.files import load_from_environment
from launchers.jobs.demo import DemoConfig, parse_demo
from launchers.jobs.request import LAUNCH_VARIABLE, RECIPE_VARIABLE

_LAUNCH = TypeAdapter(LaunchConfig)


def read_environment() -> tuple[Recipe | DemoConfig, LaunchConfig]:
    """What to run and on which worker group.

    Raises:
        UserError: not inside a job, or the recipe is not valid.
    """
    try:
        text, launch = os.environ[RECIPE_VARIABLE], os.environ[LAUNCH_VARIABLE]
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set; `ifsq submit` starts this command") from None
    load_from_environment()
    recipe = parse_recipe(parse_yaml(text, RECIPE_VARIABLE), RECIPE_VARIABLE)
    return recipe, checked(_LAUNCH, parse_json(launch.encode(), LAUNCH_VARIABLE), LAUNCH_VARIABLE)


def parse_recipe(values: Any, source: str) -> Recipe | DemoConfig:
    """A recipe of any kind that a job can run, the demo included.

    Raises:
        UserError: not valid.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: a recipe is a mapping of keys, found {type(values).__name__}")
    if values.get("kind") == "demo":
        return parse_demo(values)
    return validate_recipe(values, source=source)
