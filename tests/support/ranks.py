"""Run a function in several gloo ranks, as torchrun would start them.

Ranks are forked from one process that has imported torch and DeepSpeed already: importing them
takes five seconds of a processor, and the suite starts about a hundred ranks.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
import tempfile
import traceback
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from tests.support.repository import REPOSITORY

WORKER = "tests.support.workers"
_PRELOADED = [WORKER, "deepspeed", "tests.support.trace_runs", "tests.support.matrix_runs"]


def free_port() -> int:
    """A loopback port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(
    world_size: int, function: str, timeout_seconds: float = 240, **arguments: Any
) -> list[Any]:
    """Call ``workers.<function>(**arguments)`` in each rank; their JSON-able results in order."""
    context = _forkserver()
    port = str(free_port())
    with tempfile.TemporaryDirectory() as folder:
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
            call = (dict(environment), function, json.dumps(arguments), f"{folder}/{rank}")
            process = context.Process(target=_rank, args=call, daemon=True)
            process.start()
            processes.append(process)
        try:
            return [
                _result(process, Path(folder, str(rank)), timeout_seconds)
                for rank, process in enumerate(processes)
            ]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _forkserver() -> ForkServerContext:
    """Where ranks are forked; its process starts with the first call and one thread for torch."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
    return context


def _rank(environment: dict[str, str], function: str, arguments: str, place: str) -> None:
    """In the rank: what it prints goes to ``<place>.log``, its result to ``<place>.json``."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    log = os.open(f"{place}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        import torch.distributed as dist

        from tests.support import workers

        result = getattr(workers, function)(**json.loads(arguments))
        Path(f"{place}.json").write_text(json.dumps(result))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _result(process: BaseProcess, place: Path, timeout: float) -> Any:
    process.join(timeout)
    log = place.with_suffix(".log")
    said = log.read_text(errors="replace")[-4000:] if log.exists() else ""
    assert process.exitcode == 0, f"rank {place.name} ended with {process.exitcode}:\n{said}"
    return json.loads(place.with_suffix(".json").read_bytes())
