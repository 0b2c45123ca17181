"""Command-line options that several commands share."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from data_pipelines.errors import UserError

if TYPE_CHECKING:
    from ifsq_train.config import LoadingConfig

RecipeName = Annotated[str, typer.Argument(help="YAML file or shipped recipe (`ifsq recipes`).")]


def _load_plugins(paths: list[str] | None) -> list[str] | None:
    from ifsq_train.plugins.files import load_files

    load_files(paths or [])
    return paths


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="FILE",
        callback=_load_plugins,
        is_eager=True,
        help="Python file that adds kinds to recipes; it is run. Give it again for more.",
    ),
]
"""Loaded as soon as it is met, so that a command needs nothing more than the parameter."""


Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value changes, dots between nested keys.")
]


Address = Annotated[str | None, typer.Option(help="Ray cluster to join; a local one if left out.")]


Loading = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="How workers load data: prefetch_batches, reader_threads, decode_threads or"
        " decode_actors; may be repeated.",
    ),
]


AllowChange = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY",
        help="Resume although this key of the recipe, or one below it, has changed; may be"
        " repeated.",
    ),
]

Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Remove what this command wrote to the output before; nothing else."
    ),
]


def loading_config(items: list[str] | None) -> LoadingConfig:
    """What `--loading` was given.

    Raises:
        UserError: not KEY=VALUE, an unknown key, or a value that is not allowed.
    """
    from pydantic import ValidationError

    from ifsq_train.config import LoadingConfig

    pairs = [item.partition("=") for item in items or []]
    try:
        return LoadingConfig.model_validate({key: value for key, _, value in pairs})
    except ValidationError as error:
        fault = error.errors()[0]
        key = fault["loc"][0]
        known = ", ".join(LoadingConfig.model_fields)
        text = f"allowed are {known}" if key not in LoadingConfig.model_fields else fault["msg"]
        raise UserError(f"--loading {key}={fault['input']}: {text}") from None


def finite(param: typer.CallbackParam, value: float | None) -> float | None:
    """Callback of options that take a number: none has a use for NaN or infinity.

    Raises:
        UserError: the option was given one.
    """
    if value is not None and not math.isfinite(value):
        raise UserError(f"{param.opts[0]}: found {value}; give a finite number")
    return value


Grid = Annotated[
    str | None, typer.Option(metavar="N|HxW", help="Generators: side of the token grid, or both.")
]
ImagePixels = Annotated[
    str, typer.Option("--image-size", metavar="N|HxW", help="Side of the images, or both; pixels.")
]


def both_sides(option: str, text: str) -> tuple[int, int]:
    """Height and width that an option was given, as one number or as HEIGHTxWIDTH.

    Raises:
        UserError: neither.
    """
    sides = text.split("x")
    if len(sides) <= 2 and all(re.fullmatch("[1-9][0-9]{0,5}", side) for side in sides):
        return int(sides[0]), int(sides[-1])
    raise UserError(f"{option}: found '{text[:60]}'; give a number, or HEIGHTxWIDTH such as 16x24")


def gpu_count(text: str) -> int | Literal["auto"]:
    """What `--gpus-per-worker` was given.

    Raises:
        UserError: neither a number of GPUs nor `auto`.
    """
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit():
        return int(text)
    raise UserError(f"--gpus-per-worker: found '{text}'; give a number from 0 on, or auto")
