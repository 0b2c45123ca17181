"""The start check of nodes that promise a fast network."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from launchers.on_ray.network_check import check_network, network_faults


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with one InfiniBand card and unlimited locked memory."""
    (tmp_path / "dev/infiniband").mkdir(parents=True)
    (tmp_path / "dev/infiniband/uverbs0").touch()
    port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
    port.mkdir(parents=True)
    (port / "state").write_text("4: ACTIVE\n")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    for name in ("NCCL_IB_DISABLE", "NCCL_NET"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def faults(node: Path, kind: str = "rdma", missing: tuple[str, ...] = ()) -> list[str]:
    return list(network_faults(kind, node, lambda name: name not in missing))


def test_a_node_with_everything_is_fine(node: Path) -> None:
    assert faults(node) == []
    assert faults(node, "efa") == []


def test_what_is_missing_is_named(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "libibverbs1" in faults(node, missing=("libibverbs.so.1",))[0]
    assert "libfabric" in faults(node, "efa", missing=("libfabric.so.1",))[0]
    (node / "sys/class/infiniband/mlx5_0/ports/1/state").write_text("1: DOWN\n")
    assert faults(node) == ["no port of /sys/class/infiniband is ACTIVE"]
    (node / "dev/infiniband/uverbs0").unlink()
    assert "device plugin" in faults(node)[0]
    monkeypatch.setenv("NCCL_IB_DISABLE", "1")
    assert "NCCL_IB_DISABLE=1" in faults(node)[0]


def test_locked_memory_that_is_limited_is_a_fault(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also for user 1000 with IPC_LOCK, which such a process never gets."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (65536, 65536))
    (fault,) = faults(node)
    assert "65,536 bytes may be locked" in fault
    assert "LimitMEMLOCK=infinity" in fault


def test_a_broken_promise_fails_or_warns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("IFSQ_NETWORK", raising=False)
    check_network(tmp_path)
    monkeypatch.setenv("IFSQ_NETWORK", "rdma")
    with pytest.raises(UserError, match="promises rdma but NCCL would fall back to sockets"):
        check_network(tmp_path)
    monkeypatch.setenv("IFSQ_NETWORK_MISSING", "warn")
    check_network(tmp_path)
    assert "would fall back to sockets" in caplog.text
