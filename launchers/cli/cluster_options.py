"""Options and helpers of the commands that talk to clusters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

Target = Literal["local", "ray", "k8s"]
Cluster = Literal["ray", "k8s"]

JobName = Annotated[str, typer.Argument(help="Name of the job, as `ifsq jobs` shows it.")]
To = Annotated[Cluster, typer.Option("--to", help="Kind of cluster: k8s or ray.")]
DashboardAddress = Annotated[
    str, typer.Option(help="Ray: address of the dashboard.", envvar="RAY_DASHBOARD_ADDRESS")
]
Namespace = Annotated[
    str | None,
    typer.Option(help="Kubernetes: namespace; of .ifsq.yaml or the context if left out."),
]
Context = Annotated[
    str | None,
    typer.Option(help="Kubernetes: context; of .ifsq.yaml or kubectl's current one if left out."),
]
Rank = Annotated[int | None, typer.Option(min=0, help="Kubernetes: of this training worker.")]
Code = Annotated[
    str | None,
    typer.Option(help="Kubernetes: folder whose packages replace the image's, such as `.`."),
]
Wait = Annotated[bool, typer.Option(help="Watch the job; Ctrl-C leaves it running.")]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def connect(to: Cluster, address: str, namespace: str | None, context: str | None) -> Any:
    """The cluster a command is about.

    Raises:
        UserError: it is not configured, or nothing answers.
    """
    if to == "ray":
        from launchers.on_ray.jobs import RayCluster

        return RayCluster(address)
    return connect_kubernetes(namespace, context)


def connect_kubernetes(namespace: str | None, context: str | None) -> Any:
    """The Kubernetes cluster a command is about; defaults come from the project file.

    Raises:
        UserError: none is configured.
    """
    from launchers.jobs.project import project_defaults
    from launchers.on_kubernetes.cluster import KubernetesCluster

    defaults = project_defaults()
    return KubernetesCluster.connect(context or defaults.context, namespace or defaults.namespace)


def watch(follow: Callable[[], None], name: str, options: str) -> None:
    """Follow a job; Ctrl-C detaches, a failed job is exit code 1."""
    from launchers.jobs.verdict import JobFailed

    try:
        follow()
    except KeyboardInterrupt:
        note(f"\ndetached; job '{name}' goes on. {how_to_return(name, options)}")
        raise typer.Exit(130) from None
    except JobFailed as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from error


def how_to_return(name: str, options: str) -> str:
    """Commands that come back to a job."""
    return (
        f"Come back with `ifsq logs {name} --follow{options}`;"
        f" end it with `ifsq cancel {name}{options}`"
    )


def kubernetes_options(namespace: str | None, context: str | None) -> str:
    """The options given, to be repeated in a hint."""
    text = f" --namespace {namespace}" if namespace else ""
    return text + (f" --context {context}" if context else "")


def note(text: str) -> None:
    """A line for the person, beside the command's own output."""
    sys.stderr.write(f"{text}\n")
