"""Command-line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(help="YAML file or shipped recipe (`ifsq recipes`).")]


Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value changes, dots between nested keys.")
]


Address = Annotated[str | None, typer.Option(help="Ray cluster to join; a local one if left out.")]
