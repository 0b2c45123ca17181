"""A node that will be taken away is noticed by its workers, through Ray's own internals."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launchers.on_ray.cluster import ray_session

RAY = str(Path(sys.executable).parent / "ray")
WAIT_SECONDS = 120.0


def _wait_for_preemption(settings: dict[str, str]) -> None:
    """What the worker does: have its own node drained, and wait until its context says so."""
    import ray

    from ifsq_train.distributed.interruption import Interruption
    from launchers.on_ray.context import RayTrainContext

    context = RayTrainContext("launch", Path(settings["folder"]) / "stop", use_gpu=False)
    seen = [context.interruption().name]
    own = ray.get_runtime_context()
    drain = [RAY, "drain-node", f"--address={own.gcs_address}", f"--node-id={own.get_node_id()}"]
    drain += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
    drain += ["--deadline-remaining-seconds=300"]
    subprocess.run(drain, check=True, timeout=60, capture_output=True)
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        if context.interruption() is Interruption.PREEMPTED:
            break
        time.sleep(0.1)
    seen.append(context.interruption().name)
    (Path(settings["folder"]) / "seen").write_text(" ".join(seen))


@pytest.mark.slow
def test_the_context_of_a_worker_knows_that_its_node_is_drained(tmp_path: Path) -> None:
    """`get_train_context().preemption_context` is private: an upgrade of Ray may move it."""
    with ray_session(None, min_cpus=2):
        from ray.train import RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        TorchTrainer(
            _wait_for_preemption,
            train_loop_config={"folder": str(tmp_path)},
            scaling_config=ScalingConfig(num_workers=1),
            run_config=RunConfig(name="preempted", storage_path=str(tmp_path / "ray")),
        ).fit()
    assert (tmp_path / "seen").read_text() == "NONE PREEMPTED"
