"""From a request to a job that the cluster has taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from data_pipelines.documents import as_object, parse_json
from data_pipelines.errors import UserError
from data_pipelines.yaml_documents import parse_yaml
from ifsq_train.plugins.files import PLUGINS_VARIABLE, packed
from launchers.jobs.environment import parse_recipe
from launchers.jobs.request import RECIPE_VARIABLE, JobRequest, SecretRef
from launchers.on_kubernetes.cluster import KubernetesCluster
from launchers.on_kubernetes.code_bundle import code_config_map
from launchers.on_kubernetes.objects import RayJob
from launchers.on_kubernetes.profile import ClusterProfile
from launchers.on_kubernetes.rayjob import CODE_ANNOTATION, REQUEST_ANNOTATION, build_rayjob
from launchers.on_kubernetes.versions import check_versions


def check_job(
    cluster: KubernetesCluster,
    request: JobRequest,
    profile: ClusterProfile,
    *,
    allow_unsupported: bool = False,
) -> RayJob:
    """The job a request would be, after the cluster has gone through everything but keeping it.

    Raises:
        UserError: as `submit_job`.
    """
    if not allow_unsupported:
        check_versions(cluster, queued=request.queue is not None)
    job = build_rayjob(request, profile, cluster.namespace)
    cluster.dry_run(job)
    return job


def submit_job(
    cluster: KubernetesCluster,
    request: JobRequest,
    profile: ClusterProfile,
    *,
    allow_unsupported: bool = False,
) -> None:
    """Check everything, create the job, then what belongs to it.

    Args:
        cluster: to submit to.
        request: what to run.
        profile: what its nodes are like.
        allow_unsupported: do not look at versions.

    Raises:
        UserError: a rule is broken, the cluster is too old, refuses the job or has one of this
            name; nothing is left behind.
    """
    if not allow_unsupported:
        check_versions(cluster, queued=request.queue is not None)
    created = cluster.create(build_rayjob(request, profile, cluster.namespace))
    if request.code is None:
        return
    try:
        # Owned by the job, so that it goes with it; its pods wait until it is there.
        cluster.create_config_map(code_config_map(request, cluster.namespace, created))
    except UserError:
        cluster.cancel(request.name)
        raise


def free_name(cluster: KubernetesCluster, name: str) -> str:
    """`name`, or the first of ``name-2``, ``name-3`` ... that no job has.

    Raises:
        UserError: access is denied.
    """
    taken = {state.name for state in cluster.list_jobs()}
    number, found = 1, name
    while found in taken:
        number += 1
        suffix = f"-{number}"
        found = f"{name[: 47 - len(suffix)].rstrip('-')}{suffix}"
    return found


@dataclass(frozen=True)
class StoredShape:
    """What a job was submitted with, as far as no recipe has to be read for it.

    Attributes:
        claim: that holds the run.
        mount: where it is mounted.
        num_workers: training workers.
    """

    claim: str | None
    mount: str
    num_workers: int


def stored_shape(job: dict[str, Any]) -> StoredShape:
    """Shape and storage of a job.

    Args:
        job: the RayJob as the API server gives it.

    Raises:
        UserError: it was not submitted by a version that keeps them.
    """
    values = _stored_values(job)
    try:
        workers = int(values["nodes"]) * max(1, int(values["gpus_per_node"]))
        return StoredShape(values["claim"], values["mount"], workers)
    except (KeyError, TypeError, ValueError) as error:
        raise _not_stored(job["metadata"]["name"]) from error


def _stored_values(job: dict[str, Any]) -> dict[str, Any]:
    notes = job["metadata"].get("annotations") or {}
    try:
        values = parse_json(notes[REQUEST_ANNOTATION].encode(), REQUEST_ANNOTATION)
        return as_object(values, REQUEST_ANNOTATION)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise _not_stored(job["metadata"]["name"]) from error


def _not_stored(name: str) -> UserError:
    return UserError(
        f"job '{name}' does not hold what it was submitted with; use `ifsq submit` again"
    )


def stored_request(job: dict[str, Any]) -> tuple[JobRequest, ClusterProfile]:
    """The request and profile a job was submitted with; without its code.

    Args:
        job: the RayJob as the API server gives it.

    Raises:
        UserError: it was not submitted by a version that keeps them, or needs plug-ins.
    """
    name, values = job["metadata"]["name"], _stored_values(job)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    env = {v["name"]: v.get("value") for v in head["env"]}
    if env.get(PLUGINS_VARIABLE) and not packed():
        # A job's own plug-ins are not run here: anybody may have submitted it.
        raise UserError(f"job '{name}' ran with plug-in files; give them again with --plugin FILE")
    stored = parse_yaml(env.get(RECIPE_VARIABLE) or "", RECIPE_VARIABLE)
    recipe = parse_recipe(stored, RECIPE_VARIABLE)
    try:
        profile = ClusterProfile.model_validate(values.pop("profile"))
        values["secrets"] = tuple(SecretRef(*found) for found in values["secrets"])
        values["more_storage"] = tuple((claim, mount) for claim, mount in values["more_storage"])
        return JobRequest(name=name, recipe=recipe, **values), profile
    except (KeyError, TypeError, ValueError) as error:
        raise _not_stored(name) from error


def resumed_request(
    cluster: KubernetesCluster, name: str, code: Any
) -> tuple[JobRequest, ClusterProfile]:
    """A finished job's request under a name that is free.

    Args:
        cluster: where it is.
        name: of the finished job.
        code: local code to send, if the job had some.

    Raises:
        UserError: no such job, it still runs, or its code is missing.
    """
    from launchers.on_kubernetes.state import rayjob_state

    job = cluster.get(name)
    state = rayjob_state(job)
    if not state.finished:
        raise UserError(
            f"job '{name}' has not finished ({state.line()}); two jobs must not write to one run:"
            f" wait, or end it with `ifsq cancel {name}`"
        )
    had = (job["metadata"].get("annotations") or {}).get(CODE_ANNOTATION)
    if had and code is None:
        raise UserError(f"job '{name}' ran with local code {had}; give it again with --code FOLDER")
    request, profile = stored_request(job)
    return replace(request, name=free_name(cluster, name), code=code), profile
