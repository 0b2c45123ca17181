"""What a user wants to run on a cluster, checked; the same for Ray clusters and Kubernetes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field

import yaml

from data_pipelines.errors import UserError
from ifsq_train.config import (
    EvaluateConfig,
    LaunchConfig,
    LoadingConfig,
    StudyConfig,
    TrainConfig,
    to_dict,
)
from ifsq_train.config.load import Recipe
from ifsq_train.metrics.goodput import SUBMITTED_VARIABLE
from ifsq_train.plugins.files import PLUGINS_VARIABLE, packed
from launchers.jobs.code import CodeBundle
from launchers.jobs.demo import DemoConfig
from launchers.jobs.plain_variables import check_plain

ENTRYPOINT = "ifsq run-job"
"""What a job runs. It has no arguments: everything travels in the environment, where no shell
looks at it."""
RECIPE_VARIABLE = "IFSQ_RECIPE"
LAUNCH_VARIABLE = "IFSQ_LAUNCH"
WORKDIR_VARIABLE = "IFSQ_WORKDIR"
STOP_ON_REFUSAL_VARIABLE = "IFSQ_STOP_ON_REFUSAL"
"""Set to 1 on clusters that retry every failure: a job stops itself at a user's mistake."""
NETWORK_VARIABLE = "IFSQ_NETWORK"
"""rdma or efa: what the nodes promise, checked by every training worker."""
NETWORK_MISSING_VARIABLE = "IFSQ_NETWORK_MISSING"
"""fail or warn."""
STUDY_STORE = "runs/studies"
"""Where a study that is a job keeps its stages, below the job's working folder."""
METRICS_PORT = 9464
DEFAULT_MOUNT = "/mnt/ifsq"

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = {
    RECIPE_VARIABLE,
    LAUNCH_VARIABLE,
    WORKDIR_VARIABLE,
    STOP_ON_REFUSAL_VARIABLE,
    NETWORK_VARIABLE,
    NETWORK_MISSING_VARIABLE,
    SUBMITTED_VARIABLE,
    PLUGINS_VARIABLE,
    "IFSQ_METRICS_HOST",
    "IFSQ_METRICS_PORT",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
}
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_MAX_RECIPE_BYTES = 100_000


@dataclass(frozen=True)
class SecretRef:
    """A Secret whose values become environment variables: all, or one under a name of its own."""

    secret: str
    key: str | None = None
    variable: str | None = None


@dataclass(frozen=True)
class JobRequest:
    """One job.

    Attributes:
        name: of the job on its cluster.
        recipe: what to run.
        nodes: worker nodes.
        gpus_per_node: GPUs of each; 0 runs one worker per node on its CPUs.
        image: container image (Kubernetes).
        queue: Kueue LocalQueue; None starts at once (Kubernetes).
        claim: PersistentVolumeClaim all nodes mount (Kubernetes).
        mount: where it is mounted; relative paths of the recipe are below it.
        more_storage: further claims and where they are mounted (Kubernetes).
        code: local changes of the packages that travel with the job (Kubernetes).
        env: environment of all processes.
        secrets: Secrets whose values become environment variables (Kubernetes).
        loading: how training workers load their batches.
        allow_changes: keys in which a training recipe may differ from the checkpoint's.
    """

    name: str
    recipe: Recipe | DemoConfig
    nodes: int = 1
    gpus_per_node: int = 0
    image: str = ""
    queue: str | None = None
    claim: str | None = None
    mount: str = DEFAULT_MOUNT
    more_storage: tuple[tuple[str, str], ...] = ()
    code: CodeBundle | None = None
    env: dict[str, str] = field(default_factory=dict)
    secrets: tuple[SecretRef, ...] = ()
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    allow_changes: tuple[str, ...] = ()

    @property
    def output(self) -> str:
        """Where the job writes; empty for what is not a job of its own."""
        if isinstance(self.recipe, StudyConfig):
            return STUDY_STORE
        return str(getattr(self.recipe, "output", ""))

    @property
    def num_workers(self) -> int:
        """Training workers or encoders: one per GPU, or one per node without GPUs."""
        return self.nodes * max(1, self.gpus_per_node)

    def launch(self, cpus_per_node: float) -> LaunchConfig:
        """The worker group that fills the nodes.

        Args:
            cpus_per_node: CPUs Ray counts on each node.
        """
        return LaunchConfig(
            num_workers=self.num_workers,
            gpus_per_worker=1 if self.gpus_per_node else 0,
            cpus_per_worker=cpus_per_node / max(1, self.gpus_per_node),
            address="auto",
            loading=self.loading,
            allow_changes=self.allow_changes,
        )

    def job_environment(self, cpus_per_node: float) -> dict[str, str]:
        """What `ifsq run-job` reads: recipe, worker group, working folder.

        Raises:
            UserError: the recipe or its plug-in files cannot travel in an environment variable.
        """
        recipe = recipe_text(self.recipe)
        launch = json.dumps(to_dict(self.launch(cpus_per_node)))
        plugins = {PLUGINS_VARIABLE: text} if (text := packed()) else {}
        return {
            **plugins,
            RECIPE_VARIABLE: recipe,
            LAUNCH_VARIABLE: launch,
            SUBMITTED_VARIABLE: str(int(time.time())),
        }


def recipe_text(recipe: Recipe | DemoConfig) -> str:
    """A recipe as YAML that survives as an environment variable of a container.

    Raises:
        UserError: it is too long, or holds ``$(``, which Kubernetes would replace.
    """
    text = yaml.safe_dump(to_dict(recipe), sort_keys=False)
    if "$(" in text:
        raise UserError("the recipe contains '$(', which Kubernetes would replace; remove it")
    if len(text.encode()) > _MAX_RECIPE_BYTES:
        raise UserError(
            f"the recipe has {len(text.encode())} bytes; a job takes {_MAX_RECIPE_BYTES} at most"
        )
    return text


def default_name(recipe: Recipe | DemoConfig) -> str:
    """A job name from the recipe: its `name`, or its kind and output folder."""
    output = getattr(recipe, "output", "")
    named = isinstance(recipe, TrainConfig | StudyConfig)
    name = recipe.name if named else f"{recipe.kind}-{output}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    slug = slug if slug[:1].isalpha() else f"ifsq-{slug}"
    return slug[:47].rstrip("-")


def parse_storage(text: str) -> tuple[str, str]:
    """``CLAIM`` or ``CLAIM:/mount/path`` as claim and mount path.

    Raises:
        UserError: neither.
    """
    claim, separator, mount = text.partition(":")
    mount = mount if separator else DEFAULT_MOUNT
    if not _CLAIM.fullmatch(claim) or not re.fullmatch(r"/[A-Za-z0-9._/-]+", mount):
        raise UserError(f"--storage '{text}' is not CLAIM or CLAIM:/mount/path")
    return claim, mount


def parse_storages(items: list[str]) -> list[tuple[str, str]]:
    """Several of `parse_storage`, each with a place of its own.

    Raises:
        UserError: malformed, or two claims at one place.
    """
    found = [parse_storage(item) for item in items]
    mounts = [mount for _, mount in found]
    for mount in mounts:
        if mounts.count(mount) > 1:
            raise UserError(f"--storage: two claims at {mount}; write CLAIM:/another/path for one")
    return found


def parse_env(items: list[str], *, plain: bool = False) -> dict[str, str]:
    """``KEY=VALUE`` strings as a dictionary.

    Args:
        items: what `--env` was given.
        plain: take names beyond those known to be harmless.

    Raises:
        UserError: malformed, set by this program itself, or a value that others may not read.
    """
    env: dict[str, str] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator or not _VARIABLE.fullmatch(key):
            shown = key if separator and len(key) < 64 else "it"
            raise UserError(f"--env: {shown} is not KEY=VALUE; write for example NCCL_DEBUG=INFO")
        if key in _RESERVED:
            raise UserError(f"--env {key} is set by the program itself; leave it out")
        check_plain(key, value, allowed=plain)
        env[key] = value
    return env


def parse_secrets(items: list[str]) -> tuple[SecretRef, ...]:
    """``SECRET`` (all its values) or ``VARIABLE=SECRET:KEY`` (one value).

    Raises:
        UserError: neither.
    """
    found = []
    for item in items:
        variable, separator, rest = item.partition("=")
        if not separator and _CLAIM.fullmatch(item):
            found.append(SecretRef(item))
            continue
        secret, colon, key = rest.partition(":")
        if not (colon and _VARIABLE.fullmatch(variable) and _CLAIM.fullmatch(secret) and key):
            raise UserError(f"--secret '{item}' is not SECRET or VARIABLE=SECRET:KEY")
        found.append(SecretRef(secret, key, variable))
    return tuple(found)


def check_request(request: JobRequest) -> None:
    """Find what cannot work before a cluster is asked for anything.

    Raises:
        UserError: batch does not split, more nodes than the job can use.
    """
    recipe = request.recipe
    if not request.output:
        raise UserError(
            f"a recipe of kind '{recipe.kind}' is not one job; submit the runs it is made of, or"
            f" run it where its jobs can be reached: `ifsq {recipe.kind}`"
        )
    if isinstance(recipe, TrainConfig):
        from ifsq_train.config.shares import check_even_split

        check_even_split(recipe, request.num_workers)
    elif isinstance(recipe, EvaluateConfig) and request.num_workers > 1:
        raise UserError(
            f"`{recipe.kind}` runs on one worker, found --nodes {request.nodes}"
            f" --gpus-per-node {request.gpus_per_node}; use one node with at most one GPU"
        )
