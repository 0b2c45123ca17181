"""The RayJob of a job: which pods with what, and why."""

from __future__ import annotations

import time
from importlib.metadata import version

from data_pipelines.errors import UserError
from ifsq_train.config import PrecomputeConfig
from ifsq_train.metrics.goodput import SUBMITTED_VARIABLE
from launchers.jobs.request import (
    ENTRYPOINT,
    METRICS_PORT,
    STOP_ON_REFUSAL_VARIABLE,
    WORKDIR_VARIABLE,
    JobRequest,
    SecretRef,
)
from launchers.on_kubernetes.objects import (
    Affinity,
    Capabilities,
    ClaimReference,
    Container,
    ContainerPort,
    ContainerSecurity,
    EmptyDir,
    EnvFrom,
    EnvSource,
    EnvVar,
    HeadGroup,
    LabelRequirement,
    NodeAffinity,
    NodeSelectorTerm,
    ObjectMeta,
    PodSecurity,
    PodSpec,
    PodTemplate,
    PreferredNodes,
    RayAuth,
    RayClusterSpec,
    RayJob,
    RayJobSpec,
    Resources,
    SecretKey,
    SecretName,
    SubmitterConfig,
    Volume,
    VolumeMount,
    WorkerGroup,
)
from launchers.on_kubernetes.profile import RAY_DRAIN_SECONDS, ClusterProfile, TopologyConfig
from launchers.on_kubernetes.quantities import parse_quantity

JOB_LABEL = "ifsq.dev/job"
PART_OF = {"app.kubernetes.io/part-of": "ifsq-train", "app.kubernetes.io/managed-by": "ifsq"}
# KubeRay makes the head Service from the ports that the head container declares, and finds the
# dashboard by the port's name (ray-operator/controllers/ray/common/service.go, getServicePorts;
# utils/util.go, FetchHeadServiceURL). It adds `metrics` 8080 where no port has that name.
RAY_HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
RAY_METRICS_PORT_NAME = "metrics"
RAY_METRICS_PORT = 8080
METRICS_PORT_NAME = "ifsq-metrics"
MIN_OBJECT_STORE_BYTES = 128 << 20


def build_rayjob(request: JobRequest, profile: ClusterProfile, namespace: str) -> RayJob:
    """The RayJob of a request on a cluster.

    Raises:
        UserError: no image, or nodes without common storage.
    """
    if not request.image:
        raise UserError("a job on Kubernetes needs an image; give --image (docs: Kubernetes)")
    if request.claim is None and not request.recipe.output.startswith("s3://"):
        raise UserError(
            f"output '{request.recipe.output}' must be on storage all nodes share;"
            " give --storage CLAIM (a ReadWriteMany PersistentVolumeClaim)"
        )
    return RayJob(
        metadata=ObjectMeta(
            name=request.name, namespace=namespace, labels=_job_labels(request, profile)
        ),
        spec=RayJobSpec(
            entrypoint=ENTRYPOINT,
            # Kueue lifts the suspension when all pods of the job fit: none waits for another.
            suspend=request.queue is not None,
            ttl_seconds_after_finished=profile.ttl_seconds_after_finished,
            active_deadline_seconds=profile.active_deadline_seconds,
            backoff_limit=profile.backoff_limit,
            submitter_config=SubmitterConfig(backoff_limit=2),
            submitter_pod_template=_submitter(request, profile),
            ray_cluster_spec=RayClusterSpec(
                ray_version=version("ray"),
                auth_options=RayAuth(mode="disabled"),
                head_group_spec=_head(request, profile),
                worker_group_specs=(_workers(request, profile),),
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


def _head(request: JobRequest, profile: ClusterProfile) -> HeadGroup:
    env = _common_env(request, profile)
    env |= request.job_environment(float(parse_quantity(profile.cpus_per_node)))
    named_ports = {**RAY_HEAD_PORTS, RAY_METRICS_PORT_NAME: RAY_METRICS_PORT}
    if isinstance(request.recipe, PrecomputeConfig):
        # The driver of a precompute counts rows; the driver of a training run has no numbers.
        named_ports[METRICS_PORT_NAME] = METRICS_PORT
    container = _container(
        "ray-head", request, profile, env, _resources(profile.head_cpus, profile.head_memory, {})
    ).model_copy(update={"ports": _ports(named_ports)})
    return HeadGroup(
        # No CPU and no GPU for Ray: nothing but the job's driver runs on the head.
        ray_start_params={
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": _quarter(profile.head_memory),
        },
        template=PodTemplate(
            metadata=ObjectMeta(labels=_pod_labels(request, "head")),
            spec=_pod(
                request,
                profile,
                container,
                node_selector=profile.head_node_selector,
                tolerations=profile.head_tolerations,
                affinity=_away_from_gpus() if request.gpus_per_node else None,
            ),
        ),
    )


def _workers(request: JobRequest, profile: ClusterProfile) -> WorkerGroup:
    extended: dict[str, str] = {}
    if request.gpus_per_node:
        extended[profile.gpu_resource] = str(request.gpus_per_node)
    if profile.rdma_resource is not None:
        extended[profile.rdma_resource] = str(profile.rdma_per_node)
    container = _container(
        "ray-worker",
        request,
        profile,
        _common_env(request, profile) | {SUBMITTED_VARIABLE: str(int(time.time()))},
        _resources(profile.cpus_per_node, profile.memory_per_node, extended),
    )
    shm = EmptyDir(medium="Memory", size_limit=profile.shm_size)
    updates: dict[str, object] = {
        "volume_mounts": (
            *(container.volume_mounts or ()),
            VolumeMount(name="shm", mount_path="/dev/shm"),
        ),
        "ports": _ports({RAY_METRICS_PORT_NAME: RAY_METRICS_PORT, METRICS_PORT_NAME: METRICS_PORT}),
    }
    if profile.rdma_resource is not None:
        # RDMA pins the memory it registers.
        updates["security_context"] = ContainerSecurity(
            capabilities=Capabilities(add=("IPC_LOCK",))
        )
    pod = _pod(
        request,
        profile,
        container.model_copy(update=updates),
        node_selector=profile.node_selector,
        tolerations=profile.tolerations,
    )
    return WorkerGroup(
        group_name="workers",
        replicas=request.nodes,
        min_replicas=request.nodes,
        max_replicas=request.nodes,
        # Jobs hardly use Ray's object store: most of /dev/shm is for NCCL and DALI.
        ray_start_params={"object-store-memory": _quarter(profile.shm_size)},
        template=PodTemplate(
            metadata=ObjectMeta(
                labels=_pod_labels(request, "worker"), annotations=_topology(profile.topology)
            ),
            spec=pod.model_copy(
                update={"volumes": (*(pod.volumes or ()), Volume(name="shm", empty_dir=shm))}
            ),
        ),
    )


def _submitter(request: JobRequest, profile: ClusterProfile) -> PodTemplate:
    """The pod that submits the entrypoint and shows its output."""
    container = Container(
        name="ray-job-submitter",
        image=request.image,
        image_pull_policy=profile.image_pull_policy,
        env=(EnvVar(name="RAY_AUTH_MODE", value="disabled"),),
        resources=Resources(
            requests={"cpu": "100m", "memory": "512Mi"}, limits={"cpu": "1", "memory": "1Gi"}
        ),
    )
    spec = PodSpec(
        containers=(container,),
        restart_policy="Never",
        image_pull_secrets=_pull_secrets(profile),
        service_account_name=profile.service_account,
        security_context=_pod_security(profile),
        node_selector=profile.head_node_selector or None,
        tolerations=profile.head_tolerations or None,
    )
    return PodTemplate(metadata=ObjectMeta(labels=_pod_labels(request, "submitter")), spec=spec)


def _container(
    name: str,
    request: JobRequest,
    profile: ClusterProfile,
    env: dict[str, str],
    resources: Resources,
) -> Container:
    mounts = []
    if request.claim is not None:
        mounts.append(VolumeMount(name="storage", mount_path=request.mount))
    variables = [EnvVar(name=key, value=value) for key, value in env.items()]
    return Container(
        name=name,
        image=request.image,
        image_pull_policy=profile.image_pull_policy,
        env=tuple(variables + [_secret_variable(s) for s in request.secrets if s.key]),
        env_from=tuple(
            EnvFrom(secret_ref=SecretName(name=s.secret)) for s in request.secrets if not s.key
        )
        or None,
        resources=resources,
        volume_mounts=tuple(mounts) or None,
    )


def _secret_variable(secret: SecretRef) -> EnvVar:
    assert secret.key is not None
    assert secret.variable is not None
    reference = EnvSource(secret_key_ref=SecretKey(name=secret.secret, key=secret.key))
    return EnvVar(name=secret.variable, value_from=reference)


def _pod(
    request: JobRequest,
    profile: ClusterProfile,
    container: Container,
    *,
    node_selector: dict[str, str],
    tolerations: tuple,
    affinity: Affinity | None = None,
) -> PodSpec:
    volumes = []
    if request.claim is not None:
        claim = ClaimReference(claim_name=request.claim)
        volumes.append(Volume(name="storage", persistent_volume_claim=claim))
    return PodSpec(
        containers=(container,),
        # A failed pod is replaced by a fresh one: a Ray node cannot come back as itself.
        restart_policy="Never",
        termination_grace_period_seconds=profile.grace_period_seconds,
        service_account_name=profile.service_account,
        image_pull_secrets=_pull_secrets(profile),
        node_selector=node_selector or None,
        tolerations=tolerations or None,
        affinity=affinity,
        security_context=_pod_security(profile),
        volumes=tuple(volumes) or None,
    )


def _common_env(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    env = {
        "RAY_AUTH_MODE": "disabled",
        STOP_ON_REFUSAL_VARIABLE: "1",
        "IFSQ_METRICS_HOST": "0.0.0.0",
        "IFSQ_METRICS_PORT": str(METRICS_PORT),
        WORKDIR_VARIABLE: request.mount if request.claim is not None else "/tmp",
        # On SIGTERM Ray tells the workers first that their node will go, and gives them this long.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(RAY_DRAIN_SECONDS),
        # A pod that is gone is noticed after seconds instead of a minute.
        "RAY_health_check_initial_delay_ms": "5000",
        "RAY_health_check_period_ms": "3000",
        "RAY_health_check_timeout_ms": "5000",
        "RAY_health_check_failure_threshold": "3",
    }
    return {**env, **profile.env, **request.env}


def _pod_labels(request: JobRequest, role: str) -> dict[str, str]:
    return {JOB_LABEL: request.name, "ifsq.dev/role": role, **PART_OF}


def _ports(named: dict[str, int]) -> tuple[ContainerPort, ...]:
    return tuple(ContainerPort(name=name, container_port=port) for name, port in named.items())


def _quarter(memory: str) -> str:
    return str(max(int(parse_quantity(memory) / 4), MIN_OBJECT_STORE_BYTES))


def _resources(cpus: str, memory: str, extended: dict[str, str]) -> Resources:
    quantities = {"cpu": cpus, "memory": memory, **extended}
    return Resources(requests=quantities, limits=quantities)


def _topology(topology: TopologyConfig | None) -> dict[str, str] | None:
    if topology is None:
        return None
    kind = "required" if topology.required else "preferred"
    return {f"kueue.x-k8s.io/podset-{kind}-topology": topology.level}


def _pull_secrets(profile: ClusterProfile) -> tuple[SecretName, ...] | None:
    return tuple(SecretName(name=name) for name in profile.image_pull_secrets) or None


def _pod_security(profile: ClusterProfile) -> PodSecurity:
    return PodSecurity(
        run_as_user=profile.run_as_user,
        run_as_group=profile.run_as_group,
        fs_group=profile.run_as_group,
    )


def _away_from_gpus() -> Affinity:
    """GPU nodes are for workers; the head takes another where there is one."""
    without = LabelRequirement(key="nvidia.com/gpu.present", operator="DoesNotExist")
    term = NodeSelectorTerm(match_expressions=(without,))
    return Affinity(
        node_affinity=NodeAffinity(
            preferred_during_scheduling_ignored_during_execution=(
                PreferredNodes(weight=100, preference=term),
            )
        )
    )
