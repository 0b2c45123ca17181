"""Command-line options that several commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from data_pipelines.errors import UserError

RecipeName = Annotated[str, typer.Argument(help="YAML file or shipped recipe (`ifsq recipes`).")]


Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value changes, dots between nested keys.")
]


Address = Annotated[str | None, typer.Option(help="Ray cluster to join; a local one if left out.")]


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
