"""The RayJob of a job: its lifetime, retries and queue; its pods are in `pods`."""

from __future__ import annotations

import json
from importlib.metadata import version

from data_pipelines.errors import UserError
from ifsq_train.config import to_dict
from launchers.jobs.request import ENTRYPOINT, JobRequest
from launchers.on_kubernetes.objects import (
    ObjectMeta,
    RayAuth,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    SubmitterConfig,
)
from launchers.on_kubernetes.pods import (
    JOB_LABEL,
    PART_OF,
    head_group,
    submitter_template,
    worker_group,
)
from launchers.on_kubernetes.profile import ClusterProfile

RUN_ANNOTATION = "ifsq.dev/output"
IMAGE_ANNOTATION = "ifsq.dev/image"
CODE_ANNOTATION = "ifsq.dev/code"
REQUEST_ANNOTATION = "ifsq.dev/request"


def build_rayjob(request: JobRequest, profile: ClusterProfile, namespace: str) -> RayJob:
    """The RayJob of a request on a cluster.

    Raises:
        UserError: no image, or nodes without common storage.
    """
    if not request.image:
        raise UserError("a job on Kubernetes needs an image; give --image (docs: Kubernetes)")
    if profile.image_by_digest and "@sha256:" not in request.image:
        raise UserError(
            f"the profile wants images by digest, found --image {request.image}; give"
            " NAME@sha256:..., which your registry shows beside the tag"
        )
    if request.claim is None and not request.output.startswith("s3://"):
        raise UserError(
            f"output '{request.output}' must be on storage all nodes share;"
            " give --storage CLAIM (a ReadWriteMany PersistentVolumeClaim)"
        )
    return RayJob(
        metadata=ObjectMeta(
            name=request.name,
            namespace=namespace,
            labels=_job_labels(request, profile),
            annotations=_job_annotations(request, profile),
        ),
        spec=RayJobSpec(
            entrypoint=ENTRYPOINT,
            # Kueue lifts the suspension when all pods of the job fit: none waits for another.
            suspend=request.queue is not None,
            ttl_seconds_after_finished=profile.ttl_seconds_after_finished,
            active_deadline_seconds=profile.active_deadline_seconds,
            backoff_limit=profile.backoff_limit,
            submitter_config=SubmitterConfig(backoff_limit=2),
            submitter_pod_template=submitter_template(request, profile),
            ray_cluster_spec=RayClusterSpec(
                ray_version=version("ray"),
                # KubeRay makes a Secret with a token of its own for every cluster, owned by it.
                auth_options=RayAuth(mode="token"),
                head_group_spec=head_group(request, profile),
                worker_group_specs=(worker_group(request, profile),),
            ),
        ),
    )


def _job_labels(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": request.recipe.kind,
        JOB_LABEL: request.name,
        **PART_OF,
    }
    if request.queue is not None:
        labels["kueue.x-k8s.io/queue-name"] = request.queue
    if profile.priority_class is not None:
        labels["kueue.x-k8s.io/priority-class"] = profile.priority_class
    return labels


def _job_annotations(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    """What `ifsq status`, `jobs` and `resume` show or use again."""
    notes = {
        RUN_ANNOTATION: request.output,
        IMAGE_ANNOTATION: request.image,
        REQUEST_ANNOTATION: request_annotation(request, profile),
    }
    if request.code is not None:
        notes[CODE_ANNOTATION] = request.code.digest
    return notes


def request_annotation(request: JobRequest, profile: ClusterProfile) -> str:
    """Request and profile as JSON, without recipe and code, for `ifsq resume`."""
    values = {
        "nodes": request.nodes,
        "gpus_per_node": request.gpus_per_node,
        "image": request.image,
        "queue": request.queue,
        "claim": request.claim,
        "mount": request.mount,
        "more_storage": request.more_storage,
        "env": request.env,
        "secrets": [[s.secret, s.key, s.variable] for s in request.secrets],
        "profile": to_dict(profile),
    }
    return json.dumps(values, separators=(",", ":"))
