"""The parts of Kubernetes and KubeRay objects that this project uses, as types.

Field names are the API's, in snake case; `to_manifest` gives the API's own spelling. Unknown
fields are errors, so a typing mistake cannot be pruned silently by the API server.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from pydantic.alias_generators import to_camel

from launchers.on_kubernetes.pod_override import PodOverride, merge

Labels = dict[str, str]
PullPolicy = Literal["Always", "IfNotPresent", "Never"]
Quantities = dict[str, str]


class K8sObject(BaseModel):
    """Base: immutable, camel case outside, unset fields left out."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )

    def to_manifest(self) -> dict[str, Any]:
        """As the API server takes it."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


class ObjectMeta(K8sObject):
    """Name and labels of an object or of a pod template."""

    name: str | None = None
    namespace: str | None = None
    labels: Labels | None = None
    annotations: Labels | None = None


class SecretKey(K8sObject):
    """One value of a Secret, by reference."""

    name: str
    key: str


class EnvSource(K8sObject):
    """Where the value of an environment variable comes from."""

    secret_key_ref: SecretKey


class EnvVar(K8sObject):
    """An environment variable: a literal value or a reference."""

    name: str
    value: str | None = None
    value_from: EnvSource | None = None


class SecretName(K8sObject):
    """A Secret, by name."""

    name: str


class EnvFrom(K8sObject):
    """All values of a Secret as environment variables."""

    secret_ref: SecretName


class Capabilities(K8sObject):
    """Linux capabilities of a container."""

    drop: tuple[str, ...] = ("ALL",)
    add: tuple[str, ...] | None = None


class ContainerSecurity(K8sObject):
    """What a container may do: as little as possible."""

    allow_privilege_escalation: bool = False
    capabilities: Capabilities = Capabilities()


class SeccompProfile(K8sObject):
    """System calls a pod may make."""

    type: Literal["RuntimeDefault"] = "RuntimeDefault"


class PodSecurity(K8sObject):
    """Who a pod runs as."""

    run_as_non_root: bool = True
    run_as_user: int
    run_as_group: int
    fs_group: int
    fs_group_change_policy: Literal["OnRootMismatch"] = "OnRootMismatch"
    seccomp_profile: SeccompProfile = SeccompProfile()


class Resources(K8sObject):
    """What a container asks for; equal requests and limits make it Guaranteed."""

    requests: Quantities
    limits: Quantities
    claims: tuple[SecretName, ...] | None = None


class ContainerPort(K8sObject):
    """A named port, found by the PodMonitor."""

    name: str
    container_port: int


class VolumeMount(K8sObject):
    """Where a volume appears in a container."""

    name: str
    mount_path: str
    read_only: bool | None = None


class EmptyDir(K8sObject):
    """A folder that lives as long as its pod."""

    medium: str | None = None
    size_limit: str | None = None


class NamedSource(K8sObject):
    """A ConfigMap, by name."""

    name: str


class SecretSource(K8sObject):
    """A Secret as files, by name."""

    secret_name: str


class HostPath(K8sObject):
    """A folder of the node."""

    path: str


class ClaimReference(K8sObject):
    """A PersistentVolumeClaim, by name."""

    claim_name: str


class Volume(K8sObject):
    """A volume of a pod."""

    name: str
    empty_dir: EmptyDir | None = None
    persistent_volume_claim: ClaimReference | None = None
    config_map: NamedSource | None = None
    secret: SecretSource | None = None
    host_path: HostPath | None = None


class Container(K8sObject):
    """A container of a pod."""

    name: str
    image: str
    image_pull_policy: PullPolicy | None = None
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    working_dir: str | None = None
    env: tuple[EnvVar, ...] | None = None
    env_from: tuple[EnvFrom, ...] | None = None
    ports: tuple[ContainerPort, ...] | None = None
    resources: Resources
    security_context: ContainerSecurity = ContainerSecurity()
    volume_mounts: tuple[VolumeMount, ...] | None = None


class Toleration(K8sObject):
    """A taint the pod accepts."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class LabelRequirement(K8sObject):
    """A condition on a node's label."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] | None = None


class NodeSelectorTerm(K8sObject):
    """Conditions that must hold together."""

    match_expressions: tuple[LabelRequirement, ...]


class PreferredNodes(K8sObject):
    """Nodes the scheduler should favour."""

    weight: int = Field(ge=1, le=100)
    preference: NodeSelectorTerm


class NodeAffinity(K8sObject):
    """Nodes a pod is drawn to."""

    preferred_during_scheduling_ignored_during_execution: tuple[PreferredNodes, ...]


class Affinity(K8sObject):
    """Where a pod is drawn to."""

    node_affinity: NodeAffinity


class PodClaim(K8sObject):
    """Devices of dynamic resource allocation, made from a template."""

    name: str
    resource_claim_template_name: str


class PodSpec(K8sObject):
    """A pod."""

    init_containers: tuple[Container, ...] | None = None
    containers: tuple[Container, ...]
    restart_policy: Literal["Always", "OnFailure", "Never"]
    termination_grace_period_seconds: int | None = None
    automount_service_account_token: bool = False
    service_account_name: str | None = None
    image_pull_secrets: tuple[SecretName, ...] | None = None
    node_selector: Labels | None = None
    tolerations: tuple[Toleration, ...] | None = None
    affinity: Affinity | None = None
    security_context: PodSecurity
    volumes: tuple[Volume, ...] | None = None
    runtime_class_name: str | None = None
    scheduler_name: str | None = None
    priority_class_name: str | None = None
    resource_claims: tuple[PodClaim, ...] | None = None


class PodTemplate(K8sObject):
    """Template of the pods of a group.

    Attributes:
        override: raw template laid over the others when it is written.
    """

    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec
    override: PodOverride = Field(default_factory=dict, exclude=True)

    @model_serializer(mode="wrap")
    def _with_override(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return merge(handler(self), self.override)


class HeadGroup(K8sObject):
    """The Ray head: cluster state, dashboard and the job's driver."""

    ray_start_params: Labels
    template: PodTemplate


class WorkerGroup(K8sObject):
    """Ray workers that are alike."""

    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: Labels
    template: PodTemplate


class RayAuth(K8sObject):
    """Ray's own token authentication."""

    mode: Literal["disabled", "token"]


class RayClusterSpec(K8sObject):
    """The Ray cluster of a job."""

    ray_version: str
    enable_in_tree_autoscaling: bool = False
    auth_options: RayAuth | None = None
    head_group_spec: HeadGroup
    worker_group_specs: tuple[WorkerGroup, ...]


class SubmitterConfig(K8sObject):
    """The Kubernetes Job that submits the entrypoint."""

    backoff_limit: int


class RayJobSpec(K8sObject):
    """A job with a Ray cluster of its own."""

    entrypoint: str
    submission_mode: Literal["K8sJobMode"] = "K8sJobMode"
    suspend: bool = False
    shutdown_after_job_finishes: bool = True
    ttl_seconds_after_finished: int
    active_deadline_seconds: int | None = None
    backoff_limit: int
    submitter_config: SubmitterConfig
    submitter_pod_template: PodTemplate
    ray_cluster_spec: RayClusterSpec


class RayJob(K8sObject):
    """KubeRay's RayJob."""

    api_version: Literal["ray.io/v1"] = "ray.io/v1"
    kind: Literal["RayJob"] = "RayJob"
    metadata: ObjectMeta
    spec: RayJobSpec
