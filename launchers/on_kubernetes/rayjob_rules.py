"""The rules KubeRay and Kueue apply to a RayJob beyond its schema, checked before it is sent.

Each rule is a function that yields what is wrong. They follow KubeRay's own validation
(``ray-operator/controllers/ray/utils/validation.go``) and Kueue's limits for RayJobs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from data_pipelines.errors import UserError
from launchers.on_kubernetes.objects import Container, PodTemplate, RayJob
from launchers.on_kubernetes.quantities import parse_quantity

MAX_NAME_LENGTH = 47
_DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
_IMAGE = re.compile(
    r"(([A-Za-z0-9.-]+|\[[0-9a-fA-F:]+\])(:[0-9]+)?/)?"
    r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
    r"(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[A-Za-z0-9_+.-]+:[0-9a-fA-F]{32,})?"
)
"""As the kubelet reads it; the API server takes any text, and pods then wait with
InvalidImageName."""
_PLAIN_COMMAND = re.compile(r"[A-Za-z0-9_./:=@%+,-]+( [A-Za-z0-9_./:=@%+,-]+)*")


def check_rayjob(job: RayJob) -> None:
    """Check a RayJob against every rule.

    Raises:
        UserError: all faults, one line each.
    """
    faults = list(find_faults(job))
    if faults:
        raise UserError(*faults)


def find_faults(job: RayJob) -> Iterator[str]:
    """Everything KubeRay or Kueue would refuse."""
    yield from _name_faults(job)
    yield from _entrypoint_faults(job)
    yield from _lifetime_faults(job)
    yield from _group_faults(job)
    yield from _pod_faults(job)


def _name_faults(job: RayJob) -> Iterator[str]:
    name = job.metadata.name or ""
    if len(name) > MAX_NAME_LENGTH:
        yield (
            f"job name '{name}' has {len(name)} characters; KubeRay allows {MAX_NAME_LENGTH},"
            " use a shorter --name"
        )
    if not _DNS_LABEL.fullmatch(name):
        yield (
            f"job name '{name}' is not allowed; use lower-case letters, digits and '-',"
            " starting with a letter"
        )
    for key, value in (job.metadata.labels or {}).items():
        if len(value) > 63 or not _LABEL_VALUE.fullmatch(value):
            yield f"label {key}: '{value}' is not allowed; use up to 63 of A-Z a-z 0-9 - _ ."


def _entrypoint_faults(job: RayJob) -> Iterator[str]:
    # In K8sJobMode the submitter's shell sees the entrypoint, unquoted.
    if not _PLAIN_COMMAND.fullmatch(job.spec.entrypoint):
        yield (
            f"entrypoint '{job.spec.entrypoint}' has characters a shell would act on;"
            " pass values in the environment"
        )


def _lifetime_faults(job: RayJob) -> Iterator[str]:
    spec = job.spec
    queued = "kueue.x-k8s.io/queue-name" in (job.metadata.labels or {})
    if (spec.suspend or queued) and not spec.shutdown_after_job_finishes:
        yield "a job in a queue (suspend) must set shutdownAfterJobFinishes: true"
    if queued and spec.ray_cluster_spec.enable_in_tree_autoscaling:
        yield "a job in a queue cannot use Ray's autoscaler; leave enableInTreeAutoscaling out"
    if queued and not spec.suspend:
        yield "a job in a queue must start suspended, or it runs before it is admitted"
    if spec.ttl_seconds_after_finished < 0:
        yield f"ttlSecondsAfterFinished={spec.ttl_seconds_after_finished} must be 0 or more"
    if spec.active_deadline_seconds is not None and spec.active_deadline_seconds <= 0:
        yield f"activeDeadlineSeconds={spec.active_deadline_seconds} must be 1 or more"
    if spec.backoff_limit < 0:
        yield f"backoffLimit={spec.backoff_limit} must be 0 or more"


def _group_faults(job: RayJob) -> Iterator[str]:
    cluster = job.spec.ray_cluster_spec
    names = [group.group_name for group in cluster.worker_group_specs]
    if len(names) != len(set(names)):
        yield f"worker groups {names} must have different names"
    for group in cluster.worker_group_specs:
        if not group.min_replicas <= group.replicas <= group.max_replicas:
            yield (
                f"worker group {group.group_name}: replicas={group.replicas} must lie between"
                f" minReplicas={group.min_replicas} and maxReplicas={group.max_replicas}"
            )
        if group.replicas < 1:
            yield f"worker group {group.group_name}: replicas={group.replicas}; use 1 or more"
        if "labels" in group.ray_start_params:
            yield f"worker group {group.group_name}: rayStartParams may not hold 'labels'"
    if cluster.head_group_spec.ray_start_params.get("num-gpus", "0") != "0":
        yield "the head may not offer GPUs; workers need them"


def _pod_faults(job: RayJob) -> Iterator[str]:
    cluster = job.spec.ray_cluster_spec
    templates = {"head": cluster.head_group_spec.template}
    templates |= {group.group_name: group.template for group in cluster.worker_group_specs}
    containers = [found for template in templates.values() for found in template.spec.containers]
    for image in sorted({found.image for found in containers}):
        if not _IMAGE.fullmatch(image):
            yield (
                f"image '{image}' is not allowed; write [HOST/]NAME[:TAG][@DIGEST], the name in"
                " lower case"
            )
    for where, template in templates.items():
        if not template.spec.containers:
            yield f"{where}: at least one container is needed"
            continue
        container = template.spec.containers[0]
        yield from _variable_faults(where, container)
        yield from _volume_faults(where, template)


def _variable_faults(where: str, container: Container) -> Iterator[str]:
    names = [variable.name for variable in container.env or ()]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"{where}: environment variable {name} is set twice"
    for name in ("RAY_REDIS_ADDRESS", "REDIS_USERNAME", "REDIS_PASSWORD"):
        if name in names:
            yield f"{where}: {name} turns on GCS fault tolerance, which jobs do not use; remove it"
    for variable in container.env or ():
        if (variable.value is None) == (variable.value_from is None):
            yield f"{where}: {variable.name} needs either a value or a reference to a secret"
    if "RAY_enable_autoscaler_v2" in names:
        yield f"{where}: RAY_enable_autoscaler_v2 needs Ray's autoscaler, which jobs do not use"


def _volume_faults(where: str, template: PodTemplate) -> Iterator[str]:
    known = {volume.name for volume in template.spec.volumes or ()}
    container = template.spec.containers[0]
    for mount in container.volume_mounts or ():
        if mount.name not in known:
            yield f"{where}: no volume '{mount.name}' for {mount.mount_path}"
    memory = container.resources.limits.get("memory")
    for volume in template.spec.volumes or ():
        if volume.empty_dir is None or volume.empty_dir.medium != "Memory" or memory is None:
            continue
        if volume.empty_dir.size_limit is None:
            continue
        if parse_quantity(volume.empty_dir.size_limit) >= parse_quantity(memory):
            yield (
                f"{where}: {volume.name} of {volume.empty_dir.size_limit} fills the pod's memory"
                f" of {memory}; make it smaller (shm_size) or the memory larger"
            )
