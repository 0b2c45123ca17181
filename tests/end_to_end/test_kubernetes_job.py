"""A RayJob as `ifsq submit` makes it, run by real Ray nodes in network namespaces of their own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.pod_stage import Stage, delete_a_pod

STEPS = 80


@pytest.mark.slow
def test_a_job_that_loses_a_pod_completes(shared_dir: Path, tmp_path: Path) -> None:
    """Deleted half way: the run goes on where the pod was told to leave, no step missing."""
    pytest.importorskip("kubernetes")
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("pods get network namespaces: needs root and iproute2")
    stage = Stage(tmp_path, STEPS)
    stage.prepare()
    with stage.running() as cluster:
        facts = delete_a_pod(stage, cluster)
    assert facts["outcome"] == "complete", "\n".join(stage.shown[-30:])
    assert facts["starts"] >= 2
    assert facts["resumed_from_step"] >= facts["deleted_at_step"]
    assert sorted(stage.losses("deleted")) == list(range(1, STEPS + 1))
