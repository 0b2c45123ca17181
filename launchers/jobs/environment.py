"""A job's request, read back from the environment of its entrypoint."""

from __future__ import annotations

import json
import os

import yaml

from data_pipelines.errors import UserError
from ifsq_train.config import (
    LaunchConfig,
)
from ifsq_train.config.load import Recipe, validate_recipe
from launchers.jobs.request import LAUNCH_VARIABLE, RECIPE_VARIABLE


def read_environment() -> tuple[Recipe, LaunchConfig]:
    try:
        text, launch = os.environ[RECIPE_VARIABLE], os.environ[LAUNCH_VARIABLE]
    except KeyError as error:
        raise UserError(f"{error.args[0]} is not set; `ifsq submit` starts this command") from None
    recipe = validate_recipe(yaml.safe_load(text), source=RECIPE_VARIABLE)
    return recipe, LaunchConfig.model_validate(json.loads(launch))
