"""Run a function in several gloo ranks, as torchrun would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).parent / "workers.py"


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    world_size: int, function: str, timeout_seconds: float = 240, **arguments: Any
) -> list[Any]:
    """Call ``workers.<function>(**arguments)`` in each rank; their JSON-able results in order."""
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        environment = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(WORKER), function, json.dumps(arguments)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    results = []
    try:
        for rank, process in enumerate(processes):
            output, errors = process.communicate(timeout=timeout_seconds)
            assert process.returncode == 0, f"rank {rank} failed:\n{errors[-4000:]}"
            results.append(json.loads(output.strip().splitlines()[-1]))
    finally:
        for process in processes:
            process.kill()
    return results
