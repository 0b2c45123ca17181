"""`ifsq jobs`, `status`, `logs`, `cancel`: look after runs on clusters."""

from __future__ import annotations

import typer

from launchers.cli.access import dashboard, shell
from launchers.cli.cluster_options import (
    DEFAULT_ADDRESS,
    Context,
    DashboardAddress,
    JobName,
    Namespace,
    Rank,
    To,
    connect,
    connect_kubernetes,
    kubernetes_options,
    note,
    watch,
)
from launchers.cli.options import finite
from launchers.cli.run_job import run_job
from launchers.cli.submit import resume, submit


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (submit, resume, jobs, status, logs, cancel, shell, dashboard):
        app.command()(command)
    app.command("run-job", hidden=True)(run_job)


def jobs(
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
    clean: bool = typer.Option(
        False, "--clean", help="Kubernetes: remove the records of finished jobs, not their files."
    ),
    older_than_hours: float = typer.Option(
        0.0, callback=finite, min=0, help="With --clean: only such jobs."
    ),
) -> None:
    """List jobs, newest first; running ones with progress and goodput."""
    cluster = connect(to, address, namespace, context)
    if to == "ray":
        lines = [state.row() for state in cluster.list_jobs()]
    else:
        from launchers.on_kubernetes.overview import clean_jobs, overview

        if clean:
            for name in clean_jobs(cluster, older_than_hours):
                note(f"job '{name}' removed; what it wrote is kept")
        lines = [state.row(extra) for state, extra in overview(cluster)]
    if not lines:
        note(f"no jobs in namespace '{cluster.namespace}'" if to == "k8s" else "no jobs")
        return
    typer.echo(f"{'NAME':48} {'CREATED':21} {'NODES':>5}  STATE")
    for line in lines:
        typer.echo(line)


def status(
    name: JobName,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show the status of a job; exit code 1 if it failed."""
    from launchers.jobs.state import FAILED

    cluster = connect(to, address, namespace, context)
    if to == "k8s":
        from launchers.on_kubernetes.describe import describe_job

        state, rows = describe_job(cluster, name)
    else:
        state = cluster.state(name)
        rows = state.rows()
    for key, value in rows:
        typer.echo(f"{key:10} {value}")
    if state.phase == FAILED:
        raise typer.Exit(1)


def logs(
    name: JobName,
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on until the job has finished."),
    tail: int | None = typer.Option(None, min=1, help="Only the last lines."),
    rank: Rank = None,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show a job's output; with --follow also its states, as `submit` does."""
    if to == "ray":
        _logs_of_ray(connect(to, address, namespace, context), name, follow, tail, address)
        return
    cluster = connect_kubernetes(namespace, context)
    if rank is not None:
        from launchers.on_kubernetes.access import rank_log

        raise typer.Exit(rank_log(cluster, name, rank, follow=follow, tail=tail))
    if follow:
        from launchers.on_kubernetes.follow import follow_job

        cluster.get(name)
        options = kubernetes_options(namespace, context)
        watch(lambda: follow_job(cluster, name, typer.echo), name, options)
    else:
        from launchers.on_kubernetes.logs import print_logs

        print_logs(cluster, name, typer.echo, tail)


def _logs_of_ray(cluster: object, name: str, follow: bool, tail: int | None, address: str) -> None:
    from launchers.on_ray.jobs import RayCluster

    assert isinstance(cluster, RayCluster)
    if follow:
        options = f" --to ray --address {address}"
        watch(lambda: cluster.follow(name, typer.echo), name, options)
        return
    lines = cluster.logs(name).splitlines()
    for line in lines[-tail:] if tail else lines:
        typer.echo(line)


def cancel(
    name: JobName,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """End a job and free its nodes; checkpoints stay, so submitting it again resumes."""
    connect(to, address, namespace, context).cancel(name)
    typer.echo(f"job '{name}' cancelled; what it wrote is kept")
