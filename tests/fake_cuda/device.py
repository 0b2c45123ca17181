"""Building and loading the device that does nothing."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
import torch.cuda.amp.common
from torch import nn
from torch.utils import cpp_extension

SOURCE = Path(__file__).with_name("device.cpp")


def can_be_built() -> bool:
    """Whether there is a C++ compiler, and a torch without CUDA that needs this."""
    return shutil.which("g++") is not None and torch.version.cuda is None


def library() -> Path:
    """The compiled device for this torch; made once on a machine, in about half a minute."""
    key = hashlib.sha256(SOURCE.read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    made = Path(tempfile.gettempdir()) / f"ifsq-fake-cuda-{os.getuid()}" / f"{key}.so"
    if made.is_file():
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(torch.__file__).parent / "lib"
    with tempfile.NamedTemporaryFile(dir=made.parent, suffix=".so", delete=False) as unfinished:
        pass
    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", *includes, str(SOURCE)]
    links = [f"-L{folder}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{folder}"]
    subprocess.run([*command, *links, "-o", unfinished.name], check=True)
    Path(unfinished.name).replace(made)
    return made


def enable() -> None:
    """Let fake tensors be on `cuda`, for the rest of the process."""
    ctypes.CDLL(str(library())).install()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True


def move(network: nn.Module) -> nn.Module:
    """Parameters and buffers to the fake device, in place."""
    for part in network.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                moved = nn.Parameter(parameter.detach().to("cuda"), parameter.requires_grad)
                part._parameters[name] = moved
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = buffer.to("cuda")
    return network
