"""Which versions of Kubernetes, KubeRay and Kueue a job needs, and whether a cluster has them."""

from __future__ import annotations

import re
from typing import Any

from data_pipelines.errors import UserError
from launchers.jobs.patience import ConnectionLost
from launchers.on_kubernetes.cluster import KubernetesCluster

MIN_KUBERNETES = (1, 30)
MIN_KUBERAY = (1, 5, 1)
"""The first whose RayJobs take a token for Ray (`authOptions`) in all their pods."""
MIN_KUEUE = "0.15"
"""The first that serves kueue.x-k8s.io/v1beta2, which the chart uses."""
_OPERATOR_LABEL = "app.kubernetes.io/name=kuberay-operator"
_ANYWAY = "or submit with --allow-unsupported"


def check_versions(cluster: KubernetesCluster, *, queued: bool) -> None:
    """Check what any user may ask for, and the operator's version where it may be read.

    Args:
        cluster: to submit to.
        queued: whether the job goes to a Kueue queue.

    Raises:
        UserError: something is missing or older than supported.
    """
    _check_kubernetes(cluster)
    groups = _served(cluster)
    if groups is not None:
        if "v1" not in groups.get("ray.io", []):
            raise UserError(
                f"the cluster does not serve ray.io/v1: install KubeRay {dotted(MIN_KUBERAY)} or"
                " newer (docs: Kubernetes)"
            )
        kueue = groups.get("kueue.x-k8s.io")
        if queued and kueue is None:
            raise UserError("--queue needs Kueue, which this cluster does not have; leave it out")
        if queued and kueue and "v1beta2" not in kueue:
            raise UserError(
                f"the cluster serves Kueue's {', '.join(kueue)}, not v1beta2: upgrade Kueue to"
                f" {MIN_KUEUE} or newer, {_ANYWAY}"
            )
    _check_operator(cluster)


def _check_kubernetes(cluster: KubernetesCluster) -> None:
    found = _ask(cluster, "/version", "version")
    version = parse_version((found or {}).get("gitVersion") or "")
    if version and version[:2] < MIN_KUBERNETES:
        raise UserError(
            f"the cluster runs Kubernetes {dotted(version)}; {dotted(MIN_KUBERNETES)} or newer is"
            f" supported: upgrade it, {_ANYWAY}"
        )


def _served(cluster: KubernetesCluster) -> dict[str, list[str]] | None:
    """API groups and their versions; None where they cannot be read."""
    found = _ask(cluster, "/apis", "apis")
    if found is None:
        return None
    return {
        group["name"]: [version["version"] for version in group.get("versions", [])]
        for group in found.get("groups", [])
    }


def _check_operator(cluster: KubernetesCluster) -> None:
    """The operator's own version, for those who may read its Deployment; others are not told."""
    found = _ask(cluster, "/apis/apps/v1/deployments", "deployments", labelSelector=_OPERATOR_LABEL)
    for deployment in (found or {}).get("items", []):
        version = operator_version(deployment)
        if version and version < MIN_KUBERAY:
            where = f"{deployment['metadata']['namespace']}/{deployment['metadata']['name']}"
            raise UserError(
                f"the KubeRay operator {where} is {dotted(version)}; {dotted(MIN_KUBERAY)} or"
                f" newer is supported: upgrade it, {_ANYWAY}"
            )


def operator_version(deployment: dict[str, Any]) -> tuple[int, ...]:
    """Of a KubeRay Deployment: by its image's tag, else by its label; empty where neither says."""
    containers = deployment["spec"]["template"]["spec"].get("containers") or []
    for container in containers:
        image = (container.get("image") or "").split("@")[0]
        if version := parse_version(image.rsplit("/", 1)[-1].partition(":")[2]):
            return version
    labels = deployment["metadata"].get("labels") or {}
    return parse_version(labels.get("app.kubernetes.io/version") or "")


def dropped_fields(sent: Any, kept: Any, where: str = "spec") -> list[str]:
    """Fields of an object that the server's schema does not know and has left out.

    API servers before 1.27 prune them without a word; a job without its token or its submitter's
    settings would start and be something else.
    """
    if isinstance(sent, dict) and isinstance(kept, dict):
        found = []
        for key, value in sent.items():
            if key not in kept and value not in ({}, [], None, False, "", 0):
                found.append(f"{where}.{key}")
            else:
                found += dropped_fields(value, kept.get(key), f"{where}.{key}")
        return found
    if isinstance(sent, list) and isinstance(kept, list) and len(sent) == len(kept):
        pairs = zip(sent, kept, strict=True)
        return [
            field
            for index, (a, b) in enumerate(pairs)
            for field in dropped_fields(a, b, f"{where}[{index}]")
        ]
    return []


def check_kept(sent: dict[str, Any], kept: dict[str, Any]) -> None:
    """Refuse a job that the cluster's CRD cut.

    Raises:
        UserError: the CRD lacks fields.
    """
    if lost := dropped_fields(sent.get("spec"), kept.get("spec")):
        raise UserError(
            f"the cluster's RayJob CRD does not know {', '.join(lost[:4])}: its CRDs are older than"
            f" KubeRay {dotted(MIN_KUBERAY)}; upgrade them with the operator"
            " (`kubectl apply --server-side -k`, see KubeRay's upgrade guide)"
        )


def parse_version(text: str) -> tuple[int, ...]:
    """``v1.7.0-rc.0`` as (1, 7, 0); empty where there is none."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text)
    return tuple(int(part) for part in match.groups() if part) if match else ()


def dotted(version: tuple[int, ...]) -> str:
    """(1, 7, 0) as ``1.7.0``."""
    return ".".join(map(str, version))


def _ask(cluster: KubernetesCluster, path: str, what: str, **query: str) -> dict[str, Any] | None:
    try:
        return cluster.read_path(path, what, **query)
    except (ConnectionLost, UserError):
        return None
