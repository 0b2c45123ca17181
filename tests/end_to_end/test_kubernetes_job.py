"""A RayJob as `ifsq submit` makes it, run by real Ray nodes in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.pod_stage import Stage, delete_a_pod, make_a_mistake

STEPS = 80


@pytest.fixture
def stage(shared_dir: Path, tmp_path: Path) -> Stage:
    """A stand-in cluster with the demo's dataset on its claim."""
    pytest.importorskip("kubernetes")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("pods get network namespaces: needs root and iproute2")
    stage = Stage(tmp_path, STEPS)
    stage.prepare()
    return stage


@pytest.mark.slow
def test_a_job_that_loses_a_pod_completes(stage: Stage) -> None:
    """Deleted half way: the run goes on where the pod was told to leave, no step missing."""
    with stage.running() as cluster:
        facts = delete_a_pod(stage, cluster)
    assert facts["outcome"] == "complete", "\n".join(stage.shown[-30:])
    assert facts["starts"] >= 2
    assert facts["resumed_from_step"] >= facts["deleted_at_step"]
    assert sorted(stage.losses("deleted")) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_users_mistake_is_one_attempt_with_its_message(stage: Stage) -> None:
    """Although the profile allows retries, of which KubeRay makes one for any failure."""
    with stage.running() as cluster:
        facts = make_a_mistake(stage, cluster)
    assert facts["outcome"] == "failed"
    assert facts["failed_attempts"] == 0
    assert facts["job_status"] == "STOPPED"
    assert any("runs/nothing" in line for line in facts["message"])
    assert any("mistake' failed: stopped without a retry" in line for line in stage.shown)
