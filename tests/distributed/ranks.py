"""Run a function in several gloo ranks, as torchrun would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Any

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
    processes, outputs = [], []
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
        # Files, not pipes: a rank that nobody reads yet would stop at a full pipe, and all with it.
        files = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        outputs.append(files)
        processes.append(
            subprocess.Popen(command, env=environment, stdout=files[0], stderr=files[1])
        )
    results = []
    try:
        for rank, process in enumerate(processes):
            code = process.wait(timeout_seconds)
            assert code == 0, f"rank {rank} failed:\n{_read(outputs[rank][1])[-4000:]}"
            results.append(json.loads(_read(outputs[rank][0]).strip().splitlines()[-1]))
    finally:
        for process, files in zip(processes, outputs, strict=True):
            process.kill()
            for file in files:
                file.close()
    return results


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
