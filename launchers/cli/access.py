"""`ifsq shell` and `ifsq dashboard`: into a job's pods, with kubectl."""

from __future__ import annotations

from typing import Annotated

import typer

from launchers.cli.cluster_options import Context, JobName, Namespace, Rank, connect_kubernetes


def shell(
    name: JobName,
    rank: Rank = None,
    command: Annotated[
        list[str] | None, typer.Argument(help="After --: run this instead of a shell.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Open a shell in a job's head pod, or in the pod of a training worker."""
    from launchers.on_kubernetes.access import open_shell

    cluster = connect_kubernetes(namespace, context)
    raise typer.Exit(open_shell(cluster, name, rank, command or []))


def dashboard(
    name: JobName,
    port: Annotated[
        int,
        typer.Option(min=1, max=65533, help="On this machine; the metrics are at the next two."),
    ] = 8265,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Forward a job's Ray dashboard, and its metrics, to this machine until Ctrl-C."""
    from launchers.on_kubernetes.access import forward_dashboard

    cluster = connect_kubernetes(namespace, context)
    raise typer.Exit(forward_dashboard(cluster, name, port, typer.echo))
