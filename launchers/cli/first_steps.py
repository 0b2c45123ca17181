"""The commands `ifsq doctor`, `ifsq init` and `ifsq weights check`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError


def doctor(
    output: Annotated[Path, typer.Option(help="Where runs will be written.")] = Path("runs"),
) -> None:
    """Check this machine and say what to do; exit code 1 if something will not work."""
    from launchers.first_steps.doctor import examine

    checks = examine(output)
    width = max(len(check.name) for check in checks)
    for check in checks:
        _say(check.status, f"{check.name:{width}}  {check.found}", f"{'':{width}}  ", check.remedy)
    _leave_at_problems([check.status for check in checks])


def check_weights(
    folder: Annotated[Path, typer.Argument(help="Folder with downloaded weight files.")],
) -> None:
    """Say which published networks lie in a folder and what takes them; exit code 1 if one is
    damaged."""
    from launchers.first_steps.weights import examine_weights

    found = examine_weights(folder)
    for one in found:
        _say(one.status, f"{one.name}: {one.found}", "", one.use)
    _leave_at_problems([one.status for one in found])


def _say(status: str, found: str, indent: str, advice: str | None) -> None:
    typer.echo(f"{status:8} {found}")
    if advice:
        typer.echo(f"{'':8} {indent}-> {advice}")


def _leave_at_problems(statuses: list[str]) -> None:
    if "problem" in statuses:
        raise typer.Exit(1)


def digits(
    folder: Annotated[Path, typer.Argument(help="New folder for the images.")],
) -> None:
    """Write example images: scikit-learn's handwritten digits, in train/ and held-out/."""
    from launchers.first_steps.digits import write_split_digits

    counts = write_split_digits(folder)
    for part, count in counts.items():
        typer.echo(f"{count} images of 10 classes in {folder / part}")


def init(
    dataset: Annotated[
        str, typer.Argument(help="Packed dataset, or a folder of class folders with images.")
    ],
    folder: Annotated[Path, typer.Argument(help="New folder for the recipes.")] = Path("recipes"),
    held_out: Annotated[
        str | None,
        typer.Option(help="Dataset to measure on; needed with a packed dataset, else split off."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="Where the recipes will write datasets and runs.")
    ] = Path("runs"),
    size: Annotated[
        str, typer.Option(help="small: minutes on a CPU; paper: the paper's networks, for GPUs.")
    ] = "small",
) -> None:
    """Write recipes that fit a dataset: tokenizer, tokens, generator, samples, evaluation."""
    from launchers.first_steps.recipes import SIZES, write_recipes

    if size not in SIZES:
        raise UserError(f"--size '{size}' is unknown; use {' or '.join(SIZES)}")
    written = write_recipes(dataset, folder, output, held_out=held_out, size=size)
    for line in written.facts:
        typer.echo(line)
    typer.echo(f"\nrecipes in {folder}/; run them in this order:\n")
    for command in written.commands:
        typer.echo(f"  {command}")
