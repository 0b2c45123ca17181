"""Fixtures of the launcher tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launchers.on_kubernetes.cluster import KubernetesCluster
from tests.support.kube_api import Api, load_tool


@pytest.fixture(scope="session")
def api_server(shared_dir: Path) -> Iterator[Any]:
    pytest.importorskip("kubernetes")
    fakekube = load_tool(shared_dir, "fakekube")
    server = fakekube.serve(str(shared_dir / "crds" / "*.json"), 0, token="right")
    yield server
    server.shutdown()


@pytest.fixture
def api(api_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Api:
    """A stateful API server that knows RayJobs, empty; KUBECONFIG points to it."""
    kube = api_server.kube
    with kube.cv:
        for state in (kube.obj, kube.log, kube.deny, kube.logs):
            state.clear()
        kube.oldest = 0
    api = Api(api_server, tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig()))
    return api


@pytest.fixture
def cluster(api: Api) -> KubernetesCluster:
    """A client of that server."""
    return KubernetesCluster.connect()
