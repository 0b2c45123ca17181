"""How local code reaches the pods: a ConfigMap, unpacked by an init container."""

from __future__ import annotations

from typing import Any

from launchers.jobs.request import JobRequest
from launchers.on_kubernetes.objects import (
    Container,
    EmptyDir,
    NamedSource,
    Resources,
    Volume,
    VolumeMount,
)

CODE_KEY = "code.tar.xz.b64"
_PACKED, _UNPACKED = "/etc/ifsq-code", "/opt/ifsq-code"
_UNPACK = (
    "import base64, io, tarfile;"
    f" data = base64.b64decode(open('{_PACKED}/{CODE_KEY}').read());"
    f" tarfile.open(fileobj=io.BytesIO(data), mode='r:xz').extractall('{_UNPACKED}', filter='data')"
)


def code_config_map(request: JobRequest, namespace: str, owner: dict[str, Any]) -> dict[str, Any]:
    """The ConfigMap with a job's code, owned by the job so that it goes with it.

    Args:
        request: with code.
        namespace: of the job.
        owner: the RayJob as the API server gave it.
    """
    assert request.code is not None
    meta = owner["metadata"]
    reference = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "name": meta["name"],
        "uid": meta["uid"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": code_name(request),
            "namespace": namespace,
            "labels": {"app.kubernetes.io/managed-by": "ifsq", "ifsq.dev/job": request.name},
            "ownerReferences": [reference],
        },
        "immutable": True,
        "data": {CODE_KEY: request.code.text},
    }


def code_name(request: JobRequest) -> str:
    """Of the ConfigMap: the job's name and what the code is."""
    assert request.code is not None
    return f"{request.name}-code-{request.code.digest}"


def code_volumes(request: JobRequest) -> list[tuple[Volume, VolumeMount]]:
    """Where the code lies unpacked, for the Ray containers."""
    if request.code is None:
        return []
    return [
        (
            Volume(name="code-packed", config_map=NamedSource(name=code_name(request))),
            VolumeMount(name="code-packed", mount_path=_PACKED, read_only=True),
        ),
        (
            Volume(name="code", empty_dir=EmptyDir(size_limit="64Mi")),
            VolumeMount(name="code", mount_path=_UNPACKED),
        ),
    ]


def code_container(request: JobRequest, pull_policy: Any) -> tuple[Container, ...] | None:
    """Unpacks the code before Ray starts."""
    if request.code is None:
        return None
    quantities = {"cpu": "100m", "memory": "128Mi"}
    container = Container(
        name="unpack-code",
        image=request.image,
        image_pull_policy=pull_policy,
        command=("python", "-c", _UNPACK),
        resources=Resources(requests=quantities, limits=quantities),
        volume_mounts=tuple(mount for _, mount in code_volumes(request)),
    )
    return (container,)


def code_environment(request: JobRequest, python_path: str | None) -> dict[str, str]:
    """Puts the code before what the image has."""
    if request.code is None:
        return {}
    return {"PYTHONPATH": _UNPACKED + (f":{python_path}" if python_path else "")}
