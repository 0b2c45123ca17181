"""`ifsq submit`, `jobs`, `status`, `logs`, `cancel`: runs on clusters."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from data_pipelines.errors import UserError
from launchers.cli.options import Loading, Overrides, RecipeName, loading_config

if TYPE_CHECKING:
    from launchers.jobs.request import JobRequest

Target = Literal["local", "ray", "k8s"]
Cluster = Literal["ray", "k8s"]

JobName = Annotated[str, typer.Argument(help="Name of the job, as `ifsq jobs` shows it.")]
To = Annotated[Cluster, typer.Option("--to", help="Kind of cluster: k8s or ray.")]
DashboardAddress = Annotated[
    str, typer.Option(help="Ray: address of the dashboard.", envvar="RAY_DASHBOARD_ADDRESS")
]
Namespace = Annotated[
    str | None, typer.Option(help="Kubernetes: namespace; the context's if left out.")
]
Context = Annotated[
    str | None, typer.Option(help="Kubernetes: context; kubectl's current one if left out.")
]
DEFAULT_ADDRESS = "http://127.0.0.1:8265"


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for command in (submit, jobs, status, logs, cancel):
        app.command()(command)
    app.command("run-job", hidden=True)(run_job)


def submit(
    recipe: RecipeName,
    overrides: Overrides = None,
    to: Annotated[Target, typer.Option("--to", help="local, ray or k8s.")] = "k8s",
    nodes: Annotated[int, typer.Option(min=1, help="Worker nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="0: one CPU worker a node.")] = 0,
    name: Annotated[str | None, typer.Option(help="The recipe's name if left out.")] = None,
    image: Annotated[
        str, typer.Option(help="Kubernetes: container image.", envvar="IFSQ_IMAGE")
    ] = "",
    queue: Annotated[str | None, typer.Option(help="Kubernetes: Kueue LocalQueue.")] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Kubernetes: CLAIM or CLAIM:/mount/path of all nodes."),
    ] = None,
    env: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, for all processes.")] = None,
    secret: Annotated[
        list[str] | None, typer.Option(help="Kubernetes: SECRET or VARIABLE=SECRET:KEY.")
    ] = None,
    profile: Annotated[
        str | None, typer.Option(help="Kubernetes: what nodes are like; YAML file or shipped name.")
    ] = None,
    workdir: Annotated[
        str | None,
        typer.Option(
            help="Ray: folder of all nodes that relative paths are below; this one if left out."
        ),
    ] = None,
    cpus_per_node: Annotated[
        float, typer.Option(min=0.1, help="Ray and local: CPUs to use on a node.")
    ] = 1,
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show what would be sent; send nothing.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Watch the job; Ctrl-C leaves it running.")] = True,
    loading: Loading = None,
) -> None:
    """Run a recipe on a cluster and watch it; Ctrl-C only stops watching."""
    from launchers.jobs.request import check_request

    request = _request(recipe, overrides, nodes, gpus_per_node, name, image, queue, storage)
    request = _with_environment(request, env, secret)
    request = replace(request, loading=loading_config(loading))
    check_request(request)
    if to == "k8s":
        _submit_to_kubernetes(request, profile, namespace, context, dry_run=dry_run, wait=wait)
        return
    _refuse_kubernetes_options(request, profile, to)
    if dry_run:
        typer.echo(_shape(request, to, cpus_per_node))
    elif to == "ray":
        _submit_to_ray(request, address, cpus_per_node, workdir, wait=wait)
    else:
        _run_locally(request, cpus_per_node)


def _request(
    recipe: str,
    overrides: list[str] | None,
    nodes: int,
    gpus_per_node: int,
    name: str | None,
    image: str,
    queue: str | None,
    storage: str | None,
) -> JobRequest:
    from ifsq_train.config.load import load_recipe
    from launchers.jobs.request import DEFAULT_MOUNT, JobRequest, default_name, parse_storage

    loaded = load_recipe(recipe, overrides or [])
    claim, mount = parse_storage(storage) if storage else (None, DEFAULT_MOUNT)
    return JobRequest(
        name=name or default_name(loaded),
        recipe=loaded,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=image,
        queue=queue,
        claim=claim,
        mount=mount,
    )


def _with_environment(
    request: JobRequest, env: list[str] | None, secrets: list[str] | None
) -> JobRequest:
    from launchers.jobs.request import parse_env, parse_secrets

    return replace(request, env=parse_env(env or []), secrets=parse_secrets(secrets or []))


def _submit_to_kubernetes(
    request: JobRequest,
    profile: str | None,
    namespace: str | None,
    context: str | None,
    *,
    dry_run: bool,
    wait: bool,
) -> None:
    from launchers.on_kubernetes.api_errors import NoCluster
    from launchers.on_kubernetes.cluster import KubernetesCluster
    from launchers.on_kubernetes.profile import load_profile
    from launchers.on_kubernetes.rayjob import build_rayjob
    from launchers.on_kubernetes.rayjob_rules import check_rayjob

    shape = load_profile(profile, request.gpus_per_node)
    check_rayjob(build_rayjob(request, shape, namespace or "default"))
    try:
        cluster = KubernetesCluster.connect(context, namespace)
        job = build_rayjob(request, shape, cluster.namespace)
        if dry_run:
            cluster.dry_run(job)
    except NoCluster as error:
        if not dry_run:
            raise
        # Without a cluster a dry run still checks all that can be checked here.
        job = build_rayjob(request, shape, namespace or "default")
        _note(f"not checked by a cluster: {error}")
        _print_manifest(job)
        return
    if dry_run:
        _note(f"the cluster would accept this job in namespace '{cluster.namespace}'")
        _print_manifest(job)
        return
    cluster.submit(job)
    _note(f"job '{request.name}' submitted to namespace '{cluster.namespace}'")
    if wait:
        from launchers.on_kubernetes.follow import follow_job

        options = _kubernetes_options(namespace, context)
        _watch(lambda: follow_job(cluster, request.name, typer.echo), request.name, options)
    else:
        _note(_how_to_return(request.name, _kubernetes_options(namespace, context)))


def _submit_to_ray(
    request: JobRequest, address: str, cpus_per_node: float, workdir: str | None, *, wait: bool
) -> None:
    from launchers.on_ray.jobs import RayCluster

    cluster = RayCluster(address)
    cluster.submit(request, cpus_per_node, workdir or str(Path.cwd()))
    options = f" --to ray --address {address}"
    _note(f"job '{request.name}' submitted to {address}")
    if wait:
        _watch(lambda: cluster.follow(request.name, typer.echo), request.name, options)
    else:
        _note(_how_to_return(request.name, options))


def _run_locally(request: JobRequest, cpus_per_node: float) -> None:
    from ifsq_train.log import log_to_terminal
    from launchers.on_ray.job_entry import run_recipe

    log_to_terminal()
    launch = request.launch(cpus_per_node).model_copy(update={"address": None})
    typer.echo(run_recipe(request.recipe, launch))


def _refuse_kubernetes_options(request: JobRequest, profile: str | None, to: str) -> None:
    given = {
        "--queue": request.queue,
        "--storage": request.claim,
        "--secret": request.secrets,
        "--profile": profile,
    }
    for option, value in given.items():
        if value:
            raise UserError(f"{option} is for --to k8s, found --to {to}; leave it out")


def _shape(request: JobRequest, to: str, cpus_per_node: float) -> str:
    import json

    from ifsq_train.config import to_dict
    from launchers.jobs.request import recipe_text

    launch = json.dumps(to_dict(request.launch(cpus_per_node)))
    return f"# --to {to}, job {request.name}, worker group {launch}\n{recipe_text(request.recipe)}"


def jobs(
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """List jobs, newest first."""
    found = _cluster(to, address, namespace, context).list_jobs()
    if not found:
        _note("no jobs")
        return
    typer.echo(f"{'NAME':48} {'CREATED':21} {'NODES':>5}  STATE")
    for state in found:
        nodes = str(state.nodes) if state.nodes else "-"
        typer.echo(f"{state.name:48} {state.created:21} {nodes:>5}  {state.line()}")


def status(
    name: JobName,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Say how a job is; exit code 1 if it failed."""
    from launchers.jobs.state import FAILED

    cluster = _cluster(to, address, namespace, context)
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
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has finished.")
    ] = False,
    tail: Annotated[int | None, typer.Option(min=1, help="Only the last lines.")] = None,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """Show a job's output; with --follow also its states, as `submit` does."""
    cluster = _cluster(to, address, namespace, context)
    if to == "ray":
        if follow:
            options = f" --to ray --address {address}"
            _watch(lambda: cluster.follow(name, typer.echo), name, options)
        else:
            lines = cluster.logs(name).splitlines()
            for line in lines[-tail:] if tail else lines:
                typer.echo(line)
        return
    if follow:
        from launchers.on_kubernetes.follow import follow_job

        cluster.get(name)
        options = _kubernetes_options(namespace, context)
        _watch(lambda: follow_job(cluster, name, typer.echo), name, options)
    else:
        from launchers.on_kubernetes.logs import print_logs

        print_logs(cluster, name, typer.echo, tail)


def cancel(
    name: JobName,
    to: To = "k8s",
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
) -> None:
    """End a job and free its nodes; checkpoints stay, so submitting it again resumes."""
    _cluster(to, address, namespace, context).cancel(name)
    typer.echo(f"job '{name}' cancelled; what it wrote is kept")


def run_job() -> None:
    """Run the recipe of the environment; this is a job's entrypoint, not for people."""
    from ifsq_train.log import log_to_terminal
    from launchers.on_ray.job_entry import run_job as run

    log_to_terminal()
    try:
        typer.echo(run())
    except UserError as error:
        from launchers.on_ray.refusal import stop_own_job

        sys.stderr.write("".join(f"error: {line}\n" for line in str(error).splitlines()))
        sys.stderr.flush()
        stop_own_job(say=_note)
        raise typer.Exit(2) from error


def _cluster(to: Cluster, address: str, namespace: str | None, context: str | None) -> Any:
    if to == "ray":
        from launchers.on_ray.jobs import RayCluster

        return RayCluster(address)
    from launchers.on_kubernetes.cluster import KubernetesCluster

    return KubernetesCluster.connect(context, namespace)


def _watch(follow: Callable[[], None], name: str, options: str) -> None:
    """Follow a job; Ctrl-C detaches, a failed job is exit code 1."""
    from launchers.jobs.verdict import JobFailed

    try:
        follow()
    except KeyboardInterrupt:
        _note(f"\ndetached; job '{name}' goes on. {_how_to_return(name, options)}")
        raise typer.Exit(130) from None
    except JobFailed as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from error


def _how_to_return(name: str, options: str) -> str:
    return (
        f"Come back with `ifsq logs {name} --follow{options}`;"
        f" end it with `ifsq cancel {name}{options}`"
    )


def _kubernetes_options(namespace: str | None, context: str | None) -> str:
    text = f" --namespace {namespace}" if namespace else ""
    return text + (f" --context {context}" if context else "")


def _print_manifest(job: Any) -> None:
    import yaml

    class Readable(yaml.SafeDumper):
        """Texts of several lines as such, so that the recipe can be read."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Readable.add_representer(str, text)
    typer.echo(yaml.dump(job.to_manifest(), Dumper=Readable, sort_keys=False).rstrip())


def _note(text: str) -> None:
    sys.stderr.write(f"{text}\n")
