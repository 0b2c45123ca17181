"""First process of a worker pod: runs Ray, and turns an eviction into a saved checkpoint.

Kubernetes ends a pod with SIGTERM and, after the grace period, SIGKILL. Ray alone would end at
once on SIGTERM and the steps since the last checkpoint would be lost. So this process tells Ray
first that its node will be gone soon ("drain"): the training workers see it, save and leave.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

from launchers.cluster_profile import RAY_DRAIN_SECONDS
from launchers.ray_cluster import import_ray

COMMAND_VARIABLE = "KUBERAY_GEN_RAY_START_CMD"
_STOP_SECONDS = 5.0


def main() -> int:
    """Run Ray until it ends or the pod is evicted; returns Ray's exit status."""
    command = shlex.split(os.environ[COMMAND_VARIABLE])
    child = subprocess.Popen(command)
    evicted = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: evicted.set())
    while child.poll() is None:
        if evicted.wait(0.2):
            _say("evicted: the node is drained so that its workers can save a checkpoint")
            drain(RAY_DRAIN_SECONDS)
            _wait(child, RAY_DRAIN_SECONDS)
            break
    if child.poll() is None:
        child.terminate()
        _wait(child, _STOP_SECONDS)
    if child.poll() is None:
        child.kill()
    return child.wait()


def drain(seconds: float) -> bool:
    """Tell the Ray cluster that this node will be gone; False if it does not listen."""
    import_ray()
    from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
    from ray.core.generated import autoscaler_pb2

    reasons = autoscaler_pb2.DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]
    try:
        gcs = GcsClient(address=gcs_address())
        node = own_node_id(gcs)
        if node is None:
            _say("this node is not part of the Ray cluster")
            return False
        accepted, why = gcs.drain_node(
            node,
            reasons.Value("DRAIN_NODE_REASON_PREEMPTION"),
            "the pod is evicted",
            int((time.time() + seconds) * 1000),
        )
    except (RuntimeError, OSError) as error:
        _say(f"the Ray cluster does not answer: {error!r}")
        return False
    if not accepted:
        _say(f"Ray does not drain the node: {why}")
    return bool(accepted)


def gcs_address() -> str:
    """``host:port`` of the cluster state service, from the variables KubeRay sets."""
    if host := os.environ.get("FQ_RAY_IP"):
        return f"{host}:{os.environ.get('RAY_PORT', '6379')}"
    return os.environ["RAY_ADDRESS"]


def own_node_id(gcs: object) -> str | None:
    """This pod's node in the cluster, in hex: the living one with an address of this machine."""
    import psutil

    own = {address.address for links in psutil.net_if_addrs().values() for address in links}
    nodes = gcs.get_all_node_info()  # type: ignore[attr-defined]
    for node_id, info in nodes.items():
        if info.state == info.ALIVE and info.node_manager_address in own - {"127.0.0.1"}:
            return node_id.hex()
    return None


def _wait(child: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
