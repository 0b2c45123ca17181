"""What a Kubernetes cluster is like: sizes of its nodes, network, where pods may go.

Belongs to the cluster, not to a run: a team writes one file and everybody submits with
``--profile FILE``. Shipped ones: ``gpu`` (GPUs without RDMA, the default where GPUs are asked for),
``gpu8`` (eight GPUs and InfiniBand), ``efa`` (AWS), ``roce``, ``gb200``, ``cpu`` and ``kind``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from data_pipelines.documents import shown
from data_pipelines.errors import UserError
from data_pipelines.yaml_documents import read_yaml
from ifsq_train.config import Config
from launchers.on_kubernetes.objects import PullPolicy, Toleration
from launchers.on_kubernetes.pod_override import PodOverride, check_pod_override

PROFILE_FOLDER = Path(__file__).parent / "profiles"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
Quantity = Annotated[str, Field(pattern=_QUANTITY)]
RAY_DRAIN_SECONDS = 30
"""An evicted pod gives its workers this long to save a checkpoint before it ends them."""


class TopologyConfig(Config):
    """Kueue's topology-aware scheduling of the workers."""

    level: str = Field(min_length=1)
    """Node label of the level the workers should share, such as a rack or a block."""
    required: bool = False
    """Wait until all fit into one domain; otherwise only prefer it."""


class NetworkConfig(Config):
    """What the nodes' network promises, checked by every training worker when it starts."""

    kind: Literal["rdma", "efa"]
    """InfiniBand or RoCE through verbs, or AWS EFA through libfabric."""
    when_missing: Literal["fail", "warn"] = "fail"
    """What to do where NCCL would fall back to TCP sockets."""


class VolumeConfig(Config):
    """One more volume; exactly one source."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
    mount_path: str = Field(pattern=r"^/[A-Za-z0-9._/-]+$")
    read_only: bool = False
    head: bool = True
    """Whether the head mounts it too; workers always do."""
    claim: str | None = None
    config_map: str | None = None
    secret: str | None = None
    empty_dir: Quantity | None = None
    """Size of a folder on the node's disk that lives as long as the pod."""
    host_path: str | None = None
    """Folder of the node; not allowed in namespaces that enforce restricted pods."""

    @model_validator(mode="after")
    def _one_source(self) -> VolumeConfig:
        names = ("claim", "config_map", "secret", "empty_dir", "host_path")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"volume '{self.name}' needs exactly one of {', '.join(names)}")
        return self


class ClusterProfile(Config):
    """Sizes and rules of a cluster's nodes."""

    cpus_per_node: Quantity = "4"
    """CPUs of a worker pod."""
    memory_per_node: Quantity = "16Gi"
    shm_size: Quantity = "8Gi"
    """Of /dev/shm in a worker pod (NCCL, DALI and Ray's object store); counts as its memory."""
    head_cpus: Quantity = "2"
    head_memory: Quantity = "8Gi"
    gpu_resource: str = "nvidia.com/gpu"
    rdma_resource: str | None = None
    """Device plugin resource of the InfiniBand or RoCE cards, such as ``rdma/ib``."""
    rdma_per_node: int = Field(default=1, ge=1)
    extra_resources: dict[str, Quantity] = Field(default_factory=dict)
    """Of a worker pod, such as ``vpc.amazonaws.com/efa: "32"``."""
    hugepages: dict[Literal["2Mi", "1Gi"], Quantity] = Field(default_factory=dict)
    """Preallocated huge pages of a worker pod by page size; mounted at /dev/hugepages-SIZE."""
    network: NetworkConfig | None = None
    resource_claims: dict[str, str] = Field(default_factory=dict)
    """Of a worker pod: name -> ResourceClaimTemplate, such as the IMEX channel of GB200 racks."""
    runtime_class: str | None = None
    scheduler_name: str | None = None
    pod_priority_class: str | None = None
    """PriorityClass of all pods; Kueue's own is `priority_class`."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Of all pods."""
    worker_annotations: dict[str, str] = Field(default_factory=dict)
    """Of worker pods, such as those of Multus for RoCE networks."""
    volumes: tuple[VolumeConfig, ...] = ()
    head_pod: PodOverride = Field(default_factory=dict)
    """Raw pod template that is merged over the head's, for what has no key here."""
    worker_pod: PodOverride = Field(default_factory=dict)
    """Raw pod template that is merged over the workers'."""
    topology: TopologyConfig | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels of nodes for workers."""
    tolerations: tuple[Toleration, ...] = ()
    head_node_selector: dict[str, str] = Field(default_factory=dict)
    head_tolerations: tuple[Toleration, ...] = ()
    priority_class: str | None = None
    """Kueue WorkloadPriorityClass."""
    service_account: str | None = None
    image_pull_policy: PullPolicy | None = None
    """Left out: IfNotPresent for an image by digest, else Always, as a tag may be pushed again."""
    image_by_digest: bool = False
    """Refuse images that are not named by digest (``NAME@sha256:...``)."""
    image_pull_secrets: tuple[str, ...] = ()
    run_as_user: int = Field(default=1000, ge=1)
    run_as_group: int = Field(default=1000, ge=1)
    env: dict[str, str] = Field(default_factory=dict)
    """Environment of all pods, such as NCCL's settings."""
    backoff_limit: int = Field(default=3, ge=0)
    """Fresh Ray clusters after the first one failed; each resumes from the last checkpoint."""
    active_deadline_seconds: int | None = Field(default=None, ge=1)
    """The job is ended once an attempt takes this long; no limit if left out. KubeRay counts from
    the start of the attempt, waiting for pods included, and anew after a retry or a suspension
    (``rayjob_controller.go``, initRayJobStatusIfNeed)."""
    ttl_seconds_after_finished: int = Field(default=0, ge=0)
    """How long the pods of a finished job, and their GPUs, are kept to look into Ray's dashboard.
    The job's record and output stay until `ifsq cancel` or `ifsq jobs --clean`."""
    grace_period_seconds: int = Field(default=90, ge=1)
    """From the eviction of a pod to its end."""

    @model_validator(mode="after")
    def _grace_covers_the_drain(self) -> ClusterProfile:
        if self.grace_period_seconds <= RAY_DRAIN_SECONDS:
            raise ValueError(
                f"grace_period_seconds={self.grace_period_seconds} is too short; workers need"
                f" {RAY_DRAIN_SECONDS} s to save a checkpoint, use {RAY_DRAIN_SECONDS + 10} or more"
            )
        return self

    @model_validator(mode="after")
    def _overrides_are_pods(self) -> ClusterProfile:
        for key in ("head_pod", "worker_pod"):
            check_pod_override(getattr(self, key), key)
        return self


def load_profile(name: str | None, gpus_per_node: int) -> ClusterProfile:
    """Read a profile.

    Args:
        name: YAML file or shipped profile; None takes ``gpu`` or ``cpu``, as asked for.
        gpus_per_node: GPUs a worker pod asks for.

    Raises:
        UserError: unknown profile, or a value that is not allowed.
    """
    path = _find(name or ("gpu" if gpus_per_node else "cpu"))
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a profile is a mapping of keys")
    try:
        return ClusterProfile.model_validate(values)
    except ValidationError as error:
        lines = [
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'profile'}: {fault['msg']},"
            f" found {shown(fault['input'])}"
            for fault in error.errors()
        ]
        raise UserError(*lines) from error


def _find(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    shipped = PROFILE_FOLDER / f"{name}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(path.stem for path in PROFILE_FOLDER.glob("*.yaml")))
    raise UserError(f"no profile '{name}': neither a YAML file nor one of {names}")
