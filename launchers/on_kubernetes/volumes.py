"""Volumes of a job's pods: its claims, and what the profile adds."""

from __future__ import annotations

from launchers.jobs.request import JobRequest
from launchers.on_kubernetes.objects import (
    ClaimReference,
    EmptyDir,
    HostPath,
    NamedSource,
    SecretSource,
    Volume,
    VolumeMount,
)
from launchers.on_kubernetes.profile import ClusterProfile, VolumeConfig

Volumes = list[tuple[Volume, VolumeMount]]


def storage_volumes(request: JobRequest) -> Volumes:
    """The claims of a request: the first holds the run, others such things as datasets."""
    if request.claim is None:
        return []
    claims = [(request.claim, request.mount), *request.more_storage]
    volumes = []
    for index, (claim, mount) in enumerate(claims):
        name = "storage" if index == 0 else f"storage-{index + 1}"
        volume = Volume(name=name, persistent_volume_claim=ClaimReference(claim_name=claim))
        volumes.append((volume, VolumeMount(name=name, mount_path=mount)))
    return volumes


def extra_volumes(profile: ClusterProfile, *, on_head: bool) -> Volumes:
    """What the profile adds to workers, and to the head where it says so."""
    return [
        (
            _volume(config),
            VolumeMount(
                name=config.name,
                mount_path=config.mount_path,
                read_only=True if config.read_only else None,
            ),
        )
        for config in profile.volumes
        if config.head or not on_head
    ]


def _volume(config: VolumeConfig) -> Volume:
    if config.claim is not None:
        claim = ClaimReference(claim_name=config.claim)
        return Volume(name=config.name, persistent_volume_claim=claim)
    if config.config_map is not None:
        return Volume(name=config.name, config_map=NamedSource(name=config.config_map))
    if config.secret is not None:
        return Volume(name=config.name, secret=SecretSource(secret_name=config.secret))
    if config.host_path is not None:
        return Volume(name=config.name, host_path=HostPath(path=config.host_path))
    return Volume(name=config.name, empty_dir=EmptyDir(size_limit=config.empty_dir))
