"""Torch files read without running anything that stands in them.

Only what tensors are made of is resolved. Every other class a file names, such as the
``argparse.Namespace`` of its training script, becomes an inert placeholder. This module has the
form of `pickle` that ``torch.load`` asks for.
"""

from __future__ import annotations

import pickle
import tarfile
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import _utils

_TENSOR_PARTS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _utils._rebuild_parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
}
_STORAGES = (
    "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage",
    "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
)  # fmt: skip
_TENSOR_PARTS |= {("torch", name): getattr(torch, name) for name in _STORAGES}
_TENSOR_PARTS |= {
    ("torch", name): value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_NEVER_DATA = frozenset({
    "os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "importlib", "runpy", "pickle",
    "_pickle", "code", "codeop", "ctypes", "multiprocessing", "webbrowser", "commands", "pty",
})  # fmt: skip
_BUILTIN_TYPES = frozenset({
    "set", "frozenset", "list", "dict", "tuple", "int", "float", "str", "bytes", "complex",
})  # fmt: skip


class Placeholder:
    """Stands for an object of a class that is not read; takes whatever it is given and drops it."""

    source = ""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Placeholder:
        return object.__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Drop it."""

    def extend(self, values: Any) -> None:
        """Drop them."""

    def add(self, value: Any) -> None:
        """Drop it."""


class Unpickler(pickle.Unpickler):
    """Resolves what tensors are made of, and placeholders."""

    def find_class(self, module: str, name: str) -> Any:
        """The class or function a file names.

        Raises:
            UnpicklingError: one that no file of weights has a use for.
        """
        found = _TENSOR_PARTS.get((module, name))
        if found is not None:
            return found
        top = module.partition(".")[0]
        builtin = top in ("builtins", "__builtin__")
        if top in _NEVER_DATA or (builtin and name not in _BUILTIN_TYPES):
            raise pickle.UnpicklingError(f"it names {module}.{name}, which weights have no use for")
        return type("Placeholder", (Placeholder,), {"source": f"{module}.{name}"})


def load(file: Any, **options: Any) -> Any:
    """As `pickle.load`."""
    return Unpickler(file, **options).load()


def load_torch_file(path: Path) -> Any:
    """Content of a file of ``torch.save``, old or new format, on the CPU.

    Raises:
        ValueError: it is not one, is damaged, or names what no file of weights has a use for.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                    raise ValueError("a TorchScript program; save its state_dict instead")
        elif tarfile.is_tarfile(path):
            raise ValueError("a tar file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            this: Any = _AsPickleModule
            return torch.load(path, map_location="cpu", weights_only=False, pickle_module=this)
    except Exception as error:
        # A damaged pickle program can raise anything at all.
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ValueError(f"{path}: not a torch file of plain tensors ({reason})") from None


class _AsPickleModule:
    """What torch uses of `pickle_module`."""

    __name__ = "safe_pickle"
    Unpickler = Unpickler
    UnpicklingError = pickle.UnpicklingError
    load = staticmethod(load)
