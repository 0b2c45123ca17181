"""The commands `ifsq report` and `ifsq compare`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

Runs = Annotated[
    list[Path],
    typer.Argument(help="Run folders, token datasets, sample folders or evaluation results."),
]


def report(
    runs: Runs,
    output: Annotated[Path, typer.Option(help="HTML file; CSV tables go beside it.")] = Path(
        "report.html"
    ),
) -> None:
    """One page about runs: curves, images, levels, numbers, differences, environment."""
    from launchers.reports.page import write_page
    from launchers.reports.runs import open_runs

    command = shlex.join(["ifsq", *sys.argv[1:]])
    written = write_page(open_runs(runs), output, command)
    typer.echo(f"report: {written[0]}")
    if len(written) > 1:
        typer.echo(f"tables: {', '.join(map(str, written[1:]))}")


def compare(runs: Runs) -> None:
    """Runs side by side: numbers, differences between recipes, deviation over seeds."""
    from launchers.reports.compare import tables
    from launchers.reports.page import shown_tables
    from launchers.reports.runs import open_runs

    for line in shown_tables(tables(open_runs(runs))):
        typer.echo(line)
