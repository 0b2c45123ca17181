"""`ifsq monitor`: what runs on this machine are doing."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import finite


def monitor(
    runs: Annotated[Path, typer.Option(help="Folder with run folders, or one of them.")] = Path(
        "runs"
    ),
    port: Annotated[
        int, typer.Option(min=1, max=65535, help="Of Prometheus, on loopback only.")
    ] = 9090,
    terminal: Annotated[
        bool, typer.Option("--terminal", help="Use the terminal view in any case.")
    ] = False,
    seconds: Annotated[
        float | None,
        typer.Option(callback=finite, min=0.1, help="End after this time instead of at Ctrl-C."),
    ] = None,
) -> None:
    """Watch runs: with Prometheus if it is installed, otherwise in the terminal."""
    from launchers.monitoring.prometheus_server import find_prometheus, running_prometheus
    from launchers.monitoring.terminal_view import show

    if not runs.is_dir():
        raise UserError(f"--runs '{runs}' is not a folder; give the folder your runs are in")
    binary = None if terminal else find_prometheus()
    try:
        if binary is None:
            if not terminal:
                sys.stderr.write("no prometheus on PATH: showing the runs' own endpoints\n")
            show(runs, seconds)
            return
        with running_prometheus(runs, port, binary) as address:
            sys.stdout.write(
                f"Prometheus: {address}/graph (alerts: {address}/alerts)\n"
                f"Grafana: add {address} as a Prometheus data source and import the dashboards"
                " in k8s/dashboards\nCtrl-C ends it; its data stays in"
                f" {runs / '.prometheus'}\n"
            )
            sys.stdout.flush()
            threading.Event().wait(seconds)
    except KeyboardInterrupt:
        return
