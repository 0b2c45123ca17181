"""Run a function in several gloo ranks, as torchrun would start them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from typing import IO, Any

from tests.support.repository import REPOSITORY

WORKER = "tests.support.workers"


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
    processes, outputs, results = [], [], []
    with ExitStack() as stack:
        for rank in range(world_size):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            command = [sys.executable, "-m", WORKER, function, json.dumps(arguments)]
            # Files, not pipes: a rank that nobody reads yet would stop at a full pipe.
            output, errors = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(2))
            process = subprocess.Popen(
                command, env=environment, cwd=REPOSITORY, stdout=output, stderr=errors
            )
            stack.callback(process.kill)
            processes.append(process)
            outputs.append((output, errors))
        for rank, process in enumerate(processes):
            code = process.wait(timeout_seconds)
            assert code == 0, f"rank {rank} failed:\n{_read(outputs[rank][1])[-4000:]}"
            results.append(json.loads(_read(outputs[rank][0]).strip().splitlines()[-1]))
    return results


def _read(file: IO[str]) -> str:
    file.seek(0)
    return file.read()
