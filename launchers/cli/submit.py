"""`ifsq submit` and `ifsq resume`: start jobs on clusters."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from data_pipelines.errors import UserError
from launchers.cli.cluster_options import (
    DEFAULT_ADDRESS,
    Code,
    Context,
    DashboardAddress,
    JobName,
    Namespace,
    Target,
    Wait,
    connect_kubernetes,
    how_to_return,
    kubernetes_options,
    note,
    watch,
)
from launchers.cli.options import AllowChange, Loading, Overrides, Plugins, finite, loading_config

if TYPE_CHECKING:
    from launchers.jobs.request import JobRequest

SubmittedRecipe = Annotated[
    str, typer.Argument(help="YAML file, shipped recipe (`ifsq recipes`), or demo: the whole demo.")
]
Image = Annotated[str, typer.Option(help="Kubernetes: container image.", envvar="IFSQ_IMAGE")]
Storage = Annotated[
    list[str] | None,
    typer.Option(
        help="Kubernetes: CLAIM or CLAIM:/mount/path of all nodes; the first is the run's."
    ),
]
Env = Annotated[list[str] | None, typer.Option(help="KEY=VALUE, for all processes.")]
EnvPlain = Annotated[
    bool, typer.Option("--env-plain", help="Send --env of any name, readable in the job.")
]
Secret = Annotated[
    list[str] | None, typer.Option(help="Kubernetes: SECRET or VARIABLE=SECRET:KEY.")
]
Profile = Annotated[
    str | None, typer.Option(help="Kubernetes: what nodes are like; YAML file or shipped name.")
]
Suffix = Annotated[
    bool, typer.Option("--suffix", help="Kubernetes: append a number if the name is taken.")
]
Unsupported = Annotated[
    bool, typer.Option("--allow-unsupported", help="Kubernetes: do not look at its versions.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check and show what would be sent; send nothing.")
]


def submit(
    recipe: SubmittedRecipe,
    overrides: Overrides = None,
    plugin: Plugins = None,
    to: Annotated[Target, typer.Option("--to", help="local, ray or k8s.")] = "k8s",
    nodes: Annotated[int, typer.Option(min=1, help="Worker nodes.")] = 1,
    gpus_per_node: Annotated[int, typer.Option(min=0, help="0: one CPU worker a node.")] = 0,
    name: Annotated[str | None, typer.Option(help="The recipe's name if left out.")] = None,
    suffix: Suffix = False,
    image: Image = "",
    queue: Annotated[str | None, typer.Option(help="Kubernetes: Kueue LocalQueue.")] = None,
    storage: Storage = None,
    env: Env = None,
    env_plain: EnvPlain = False,
    secret: Secret = None,
    profile: Profile = None,
    code: Code = None,
    workdir: Annotated[
        str | None,
        typer.Option(
            help="Ray: folder of all nodes that relative paths are below; this one if left out."
        ),
    ] = None,
    cpus_per_node: Annotated[
        float, typer.Option(callback=finite, min=0.1, help="Ray and local: CPUs to use on a node.")
    ] = 1,
    address: DashboardAddress = DEFAULT_ADDRESS,
    namespace: Namespace = None,
    context: Context = None,
    allow_unsupported: Unsupported = False,
    dry_run: DryRun = False,
    wait: Wait = True,
    loading: Loading = None,
    allow_change: AllowChange = None,
) -> None:
    """Run a recipe on a cluster and watch it; Ctrl-C only stops watching."""
    from launchers.jobs.request import check_request, parse_env, parse_secrets

    given = _Given(image, queue, storage or [], profile).with_defaults(to)
    request = _request(recipe, overrides, nodes, gpus_per_node, name, given)
    variables = parse_env(env or [], plain=env_plain)
    request = replace(request, env=variables, secrets=parse_secrets(secret or []))
    changes = tuple(allow_change or ())
    request = replace(request, loading=loading_config(loading), allow_changes=changes)
    check_request(request)
    if to == "k8s":
        request = replace(request, code=_bundle(code))
        target = _Kubernetes(namespace, context, allow_unsupported, suffix, wait)
        _submit_to_kubernetes(request, given.profile, target, dry_run=dry_run)
        return
    _refuse_kubernetes_options(request, given.profile, code, to)
    if dry_run:
        typer.echo(_shape(request, to, cpus_per_node))
    elif to == "ray":
        _submit_to_ray(request, address, cpus_per_node, workdir, wait=wait)
    else:
        _run_locally(request, cpus_per_node)


def resume(
    name: JobName,
    code: Code = None,
    namespace: Namespace = None,
    context: Context = None,
    wait: Wait = True,
    plugin: Plugins = None,
) -> None:
    """Go on with a finished Kubernetes job: same recipe and storage, a new job."""
    del plugin  # loaded when the option was read
    from launchers.on_kubernetes.submission import resumed_request, submit_job

    cluster = connect_kubernetes(namespace, context)
    request, profile = resumed_request(cluster, name, _bundle(code))
    submit_job(cluster, request, profile, allow_unsupported=True)
    note(f"job '{request.name}' resumes '{name}' in namespace '{cluster.namespace}'")
    _watch_kubernetes(cluster, request.name, kubernetes_options(namespace, context), wait=wait)


class _Given:
    """Options that a project file may give defaults for."""

    def __init__(
        self, image: str, queue: str | None, storage: list[str], profile: str | None
    ) -> None:
        self.image, self.queue, self.storage, self.profile = image, queue, storage, profile

    def with_defaults(self, to: str) -> _Given:
        from launchers.jobs.project import project_defaults

        if to != "k8s":
            return self
        defaults = project_defaults()
        return _Given(
            self.image or defaults.image or "",
            self.queue or defaults.queue,
            self.storage or list(defaults.storage),
            self.profile or defaults.profile,
        )


class _Kubernetes:
    """Where and how to submit."""

    def __init__(
        self,
        namespace: str | None,
        context: str | None,
        allow_unsupported: bool,
        suffix: bool,
        wait: bool,
    ) -> None:
        from launchers.jobs.project import project_defaults

        defaults = project_defaults()
        self.namespace = namespace or defaults.namespace
        self.context = context or defaults.context
        self.options = kubernetes_options(namespace, context)
        self.allow_unsupported, self.suffix, self.wait = allow_unsupported, suffix, wait


def _bundle(folder: str | None) -> Any:
    from launchers.jobs.code import bundle_code

    if folder is None:
        return None
    code = bundle_code(Path(folder))
    note(f"code {code.digest}: {code.files} files of {folder}, {len(code.text):,} bytes packed")
    return code


def _request(
    recipe: str,
    overrides: list[str] | None,
    nodes: int,
    gpus_per_node: int,
    name: str | None,
    given: _Given,
) -> JobRequest:
    from launchers.jobs.request import DEFAULT_MOUNT, JobRequest, default_name, parse_storages

    loaded = _load(recipe, overrides or [])
    storages = parse_storages(given.storage)
    claim, mount = storages[0] if storages else (None, DEFAULT_MOUNT)
    return JobRequest(
        name=name or default_name(loaded),
        recipe=loaded,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        image=given.image,
        queue=given.queue,
        claim=claim,
        mount=mount,
        more_storage=tuple(storages[1:]),
    )


def _load(recipe: str, overrides: list[str]) -> Any:
    from ifsq_train.artifacts.recipe_faults import recipe_faults
    from ifsq_train.config.load import load_recipe
    from launchers.jobs.demo import demo_from_overrides

    if recipe == "demo" and not Path(recipe).is_file():
        return demo_from_overrides(overrides)
    return load_recipe(recipe, overrides, recipe_faults)


def _submit_to_kubernetes(
    request: JobRequest, profile: str | None, target: _Kubernetes, *, dry_run: bool
) -> None:
    from launchers.on_kubernetes.api_errors import NoCluster
    from launchers.on_kubernetes.missing import missing_objects
    from launchers.on_kubernetes.profile import load_profile
    from launchers.on_kubernetes.rayjob import build_rayjob
    from launchers.on_kubernetes.rayjob_rules import check_rayjob
    from launchers.on_kubernetes.submission import check_job, free_name, submit_job

    shape = load_profile(profile, request.gpus_per_node)
    unchecked = build_rayjob(request, shape, target.namespace or "default")
    check_rayjob(unchecked)
    try:
        cluster = connect_kubernetes(target.namespace, target.context)
        if target.suffix:
            request = replace(request, name=free_name(cluster, request.name))
        if dry_run:
            job = check_job(cluster, request, shape, allow_unsupported=target.allow_unsupported)
            note(f"the cluster would accept this job in namespace '{cluster.namespace}'")
            for line in missing_objects(cluster, request):
                note(line)
            _print_manifest(job)
            return
    except NoCluster as error:
        if not dry_run:
            raise
        # Without a cluster a dry run still checks all that can be checked here.
        note(f"not checked by a cluster: {error}")
        _print_manifest(unchecked)
        return
    submit_job(cluster, request, shape, allow_unsupported=target.allow_unsupported)
    note(f"job '{request.name}' submitted to namespace '{cluster.namespace}'")
    for line in missing_objects(cluster, request):
        note(line)
    _watch_kubernetes(cluster, request.name, target.options, wait=target.wait)


def _watch_kubernetes(cluster: Any, name: str, options: str, *, wait: bool) -> None:
    from launchers.on_kubernetes.follow import follow_job

    if wait:
        watch(lambda: follow_job(cluster, name, typer.echo), name, options)
    else:
        note(how_to_return(name, options))


def _submit_to_ray(
    request: JobRequest, address: str, cpus_per_node: float, workdir: str | None, *, wait: bool
) -> None:
    from launchers.on_ray.jobs import RayCluster

    cluster = RayCluster(address)
    cluster.submit(request, cpus_per_node, workdir or str(Path.cwd()))
    options = f" --to ray --address {address}"
    note(f"job '{request.name}' submitted to {address}")
    if wait:
        watch(lambda: cluster.follow(request.name, typer.echo), request.name, options)
    else:
        note(how_to_return(request.name, options))


def _run_locally(request: JobRequest, cpus_per_node: float) -> None:
    from ifsq_train.log import log_to_terminal
    from launchers.cli.run_job import run_any

    log_to_terminal()
    launch = request.launch(cpus_per_node).model_copy(update={"address": None})
    typer.echo(run_any(request.recipe, launch, Path.cwd()))


def _refuse_kubernetes_options(
    request: JobRequest, profile: str | None, code: str | None, to: str
) -> None:
    given = {
        "--queue": request.queue,
        "--storage": request.claim,
        "--secret": request.secrets,
        "--profile": profile,
        "--code": code,
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


def _print_manifest(job: Any) -> None:
    import yaml

    class Readable(yaml.SafeDumper):
        """Texts of several lines as such, so that the recipe can be read."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Readable.add_representer(str, text)
    typer.echo(yaml.dump(job.to_manifest(), Dumper=Readable, sort_keys=False).rstrip())
