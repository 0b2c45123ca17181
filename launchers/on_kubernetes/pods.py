"""The pods of a job: head, workers, submitter; which with what, and why."""

from __future__ import annotations

import time

from ifsq_train.config import PrecomputeConfig
from ifsq_train.metrics.goodput import SUBMITTED_VARIABLE
from launchers.jobs.request import (
    METRICS_PORT,
    NETWORK_MISSING_VARIABLE,
    NETWORK_VARIABLE,
    STOP_ON_REFUSAL_VARIABLE,
    WORKDIR_VARIABLE,
    JobRequest,
    SecretRef,
)
from launchers.on_kubernetes.code_bundle import code_container, code_environment, code_volumes
from launchers.on_kubernetes.objects import (
    Affinity,
    Container,
    ContainerPort,
    EmptyDir,
    EnvFrom,
    EnvSource,
    EnvVar,
    HeadGroup,
    LabelRequirement,
    NodeAffinity,
    NodeSelectorTerm,
    ObjectMeta,
    PodClaim,
    PodSecurity,
    PodSpec,
    PodTemplate,
    PreferredNodes,
    PullPolicy,
    Resources,
    SecretKey,
    SecretName,
    Volume,
    VolumeMount,
    WorkerGroup,
)
from launchers.on_kubernetes.profile import RAY_DRAIN_SECONDS, ClusterProfile, TopologyConfig
from launchers.on_kubernetes.quantities import parse_quantity
from launchers.on_kubernetes.volumes import extra_volumes, storage_volumes

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
Volumes = list[tuple[Volume, VolumeMount]]


def head_group(request: JobRequest, profile: ClusterProfile) -> HeadGroup:
    """Ray's head: cluster state, dashboard and the job's driver; no CPU and no GPU for Ray."""
    env = _common_env(request, profile)
    env |= request.job_environment(float(parse_quantity(profile.cpus_per_node)))
    named_ports = {**RAY_HEAD_PORTS, RAY_METRICS_PORT_NAME: RAY_METRICS_PORT}
    if isinstance(request.recipe, PrecomputeConfig):
        # The driver of a precompute counts rows; the driver of a training run has no numbers.
        named_ports[METRICS_PORT_NAME] = METRICS_PORT
    volumes = storage_volumes(request) + extra_volumes(profile, on_head=True)
    container = _container(
        "ray-head",
        request,
        profile,
        env,
        _resources(profile.head_cpus, profile.head_memory, {}),
        [*volumes, *code_volumes(request)],
    ).model_copy(update={"ports": _ports(named_ports)})
    return HeadGroup(
        ray_start_params={
            "dashboard-host": "0.0.0.0",
            "num-cpus": "0",
            "num-gpus": "0",
            "object-store-memory": _quarter(profile.head_memory),
        },
        template=PodTemplate(
            metadata=ObjectMeta(
                labels=pod_labels(request, "head"), annotations=profile.annotations or None
            ),
            spec=_pod(
                request,
                profile,
                container,
                [*volumes, *code_volumes(request)],
                node_selector=profile.head_node_selector,
                tolerations=profile.head_tolerations,
                affinity=_away_from_gpus() if request.gpus_per_node else None,
            ),
            override=profile.head_pod,
        ),
    )


def worker_group(request: JobRequest, profile: ClusterProfile) -> WorkerGroup:
    """A group of fixed size; one pod for each node."""
    volumes = _worker_volumes(request, profile)
    env = _common_env(request, profile) | {SUBMITTED_VARIABLE: str(int(time.time()))}
    resources = _resources(
        profile.cpus_per_node, profile.memory_per_node, _extended(request, profile)
    )
    claims = tuple(SecretName(name=name) for name in profile.resource_claims) or None
    container = _container(
        "ray-worker",
        request,
        profile,
        env,
        resources.model_copy(update={"claims": claims}),
        volumes,
    ).model_copy(
        update={
            "ports": _ports(
                {RAY_METRICS_PORT_NAME: RAY_METRICS_PORT, METRICS_PORT_NAME: METRICS_PORT}
            )
        }
    )
    pod = _pod(
        request,
        profile,
        container,
        volumes,
        node_selector=profile.node_selector,
        tolerations=profile.tolerations,
    ).model_copy(
        update={
            "runtime_class_name": profile.runtime_class,
            "resource_claims": tuple(
                PodClaim(name=name, resource_claim_template_name=template)
                for name, template in profile.resource_claims.items()
            )
            or None,
        }
    )
    annotations = {**profile.annotations, **profile.worker_annotations}
    annotations |= _topology(profile.topology)
    return WorkerGroup(
        group_name="workers",
        replicas=request.nodes,
        min_replicas=request.nodes,
        max_replicas=request.nodes,
        # Jobs hardly use Ray's object store: most of /dev/shm is for NCCL and DALI.
        ray_start_params={"object-store-memory": _quarter(profile.shm_size)},
        template=PodTemplate(
            metadata=ObjectMeta(
                labels=pod_labels(request, "worker"), annotations=annotations or None
            ),
            spec=pod,
            override=profile.worker_pod,
        ),
    )


def _worker_volumes(request: JobRequest, profile: ClusterProfile) -> Volumes:
    """Storage, the profile's own volumes, shared memory, huge pages and code."""
    shm = (
        Volume(name="shm", empty_dir=EmptyDir(medium="Memory", size_limit=profile.shm_size)),
        VolumeMount(name="shm", mount_path="/dev/shm"),
    )
    volumes = storage_volumes(request) + extra_volumes(profile, on_head=False)
    return [*volumes, shm, *_hugepage_volumes(profile), *code_volumes(request)]


def submitter_template(request: JobRequest, profile: ClusterProfile) -> PodTemplate:
    """The pod that submits the entrypoint and shows its output."""
    container = Container(
        name="ray-job-submitter",
        image=request.image,
        image_pull_policy=_pull_policy(request, profile),
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
        scheduler_name=profile.scheduler_name,
        priority_class_name=profile.pod_priority_class,
    )
    metadata = ObjectMeta(
        labels=pod_labels(request, "submitter"), annotations=profile.annotations or None
    )
    return PodTemplate(metadata=metadata, spec=spec)


def pod_labels(request: JobRequest, role: str) -> dict[str, str]:
    """Labels that network policy, monitoring and this program find pods by."""
    return {JOB_LABEL: request.name, "ifsq.dev/role": role, **PART_OF}


def _extended(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    """Devices and huge pages of a worker."""
    extended: dict[str, str] = {}
    if request.gpus_per_node:
        extended[profile.gpu_resource] = str(request.gpus_per_node)
    if profile.rdma_resource is not None:
        extended[profile.rdma_resource] = str(profile.rdma_per_node)
    extended |= {f"hugepages-{size}": amount for size, amount in profile.hugepages.items()}
    return extended | profile.extra_resources


def _hugepage_volumes(profile: ClusterProfile) -> Volumes:
    volumes = []
    for size in profile.hugepages:
        name = f"hugepages-{size.lower()}"
        volume = Volume(name=name, empty_dir=EmptyDir(medium=f"HugePages-{size}"))
        volumes.append((volume, VolumeMount(name=name, mount_path=f"/dev/hugepages-{size}")))
    return volumes


def _container(
    name: str,
    request: JobRequest,
    profile: ClusterProfile,
    env: dict[str, str],
    resources: Resources,
    volumes: Volumes,
) -> Container:
    variables = [EnvVar(name=key, value=value) for key, value in env.items()]
    return Container(
        name=name,
        image=request.image,
        image_pull_policy=_pull_policy(request, profile),
        env=tuple(variables + [_secret_variable(s) for s in request.secrets if s.key]),
        env_from=tuple(
            EnvFrom(secret_ref=SecretName(name=s.secret)) for s in request.secrets if not s.key
        )
        or None,
        resources=resources,
        volume_mounts=tuple(mount for _, mount in volumes) or None,
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
    volumes: Volumes,
    *,
    node_selector: dict[str, str],
    tolerations: tuple,
    affinity: Affinity | None = None,
) -> PodSpec:
    return PodSpec(
        init_containers=code_container(request, _pull_policy(request, profile)),
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
        volumes=tuple(volume for volume, _ in volumes) or None,
        scheduler_name=profile.scheduler_name,
        priority_class_name=profile.pod_priority_class,
    )


def _common_env(request: JobRequest, profile: ClusterProfile) -> dict[str, str]:
    env = {
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
    if profile.network is not None and request.nodes > 1:
        env[NETWORK_VARIABLE] = profile.network.kind
        env[NETWORK_MISSING_VARIABLE] = profile.network.when_missing
    env |= {**profile.env, **request.env}
    return env | code_environment(request, env.get("PYTHONPATH"))


def _ports(named: dict[str, int]) -> tuple[ContainerPort, ...]:
    return tuple(ContainerPort(name=name, container_port=port) for name, port in named.items())


def _quarter(memory: str) -> str:
    return str(max(int(parse_quantity(memory) / 4), MIN_OBJECT_STORE_BYTES))


def _resources(cpus: str, memory: str, extended: dict[str, str]) -> Resources:
    quantities = {"cpu": cpus, "memory": memory, **extended}
    return Resources(requests=quantities, limits=quantities)


def _pull_policy(request: JobRequest, profile: ClusterProfile) -> PullPolicy:
    """A tag may have been pushed again since a node pulled it; a digest cannot."""
    default: PullPolicy = "IfNotPresent" if "@sha256:" in request.image else "Always"
    return profile.image_pull_policy or default


def _topology(topology: TopologyConfig | None) -> dict[str, str]:
    if topology is None:
        return {}
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
