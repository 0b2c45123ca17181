"""The machine: needs torch only, so that it always says something."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import subprocess

import torch
from torch.cuda import nccl

from tests.benchmarks.gpu.bench import Bench

PACKAGES = ("triton", "deepspeed", "ray", "pydantic", "omegaconf", "pyarrow", "safetensors")


def describe_machine(bench: Bench) -> None:
    """Versions, device, driver, compiler, and packages that are not there."""
    found: dict[str, str | None] = {}
    for name in (*PACKAGES, "nvidia-dali-cuda130"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    bench.emit(
        "software",
        python=platform.python_version(),
        torch=torch.__version__,
        cuda=torch.version.cuda,
        compiler=shutil.which("gcc") or shutil.which("clang"),
        **found,
    )
    if bench.device.type != "cuda":
        bench.emit("device", name="cpu")
        return
    properties = torch.cuda.get_device_properties(bench.device)
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv"]
    smi = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    bench.emit(
        "device",
        name=properties.name,
        gib=round(properties.total_memory / 2**30, 1),
        multiprocessors=properties.multi_processor_count,
        count=torch.cuda.device_count(),
        cudnn=torch.backends.cudnn.version(),
        nccl=".".join(map(str, nccl.version())),
        smi=smi.strip().splitlines()[-1:],
    )
