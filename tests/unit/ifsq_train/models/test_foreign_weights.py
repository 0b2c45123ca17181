"""Weight files as other programs save them: read without running anything, or refused by name."""

import argparse
import datetime
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ifsq_train.models.released import load_released_generator
from ifsq_train.models.weight_files import read_weight_file


def network(scale: float) -> nn.Module:
    module = nn.Linear(3, 2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(scale)
    return module


LIVE, EMA = network(1.0).state_dict(), network(2.0).state_dict()


def wrapped(weights: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


EXTRAS = {
    "args": argparse.Namespace(lr=1e-4, started=datetime.datetime(2026, 1, 1)),
    "loss": np.float64(0.5),
    "history": np.arange(3.0),
    "rng": {"numpy": np.random.default_rng(0), "torch": torch.get_rng_state()},
    "path": Path("results"),
    "kinds": {1, 2},
    "optimizer": torch.optim.AdamW(network(0.0).parameters()).state_dict(),
}


@pytest.mark.parametrize(("content", "live", "averaged"), [
    ({"model": LIVE}, 1.0, 1.0),
    ({"model": LIVE, "ema": EMA, **EXTRAS}, 1.0, 2.0),
    ({"ema": EMA}, 2.0, 2.0),
    (LIVE, 1.0, 1.0),
    ({"state_dict": wrapped(LIVE, "module.")}, 1.0, 1.0),
    ({"model": wrapped(LIVE, "module._orig_mod."), "ema": wrapped(EMA, "module.")}, 1.0, 2.0),
])  # fmt: skip
@pytest.mark.parametrize("legacy", [False, True])
def test_layouts_of_released_files(
    tmp_path: Path, content: Any, live: float, averaged: float, legacy: bool
):
    path = tmp_path / "w.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    for wanted, value in ((False, live), (True, averaged)):
        module = network(0.0)
        load_released_generator(module, path, averaged=wanted)
        assert all(bool((p == value).all()) for p in module.parameters())


class _Runs:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (os.environ["MARK"],)


class _Evaluates:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return eval, (f"__import__('os').mkdir({os.environ['MARK']!r})",)


@pytest.mark.parametrize(("kind", "named"), [(_Runs, "mkdir"), (_Evaluates, "eval, which")])
def test_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type, named: str
):
    monkeypatch.setenv("MARK", str(tmp_path / "mark"))
    torch.save({"model": LIVE, "x": kind()}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=named):
        read_weight_file(tmp_path / "w.pt")
    assert not (tmp_path / "mark").exists()


def test_weights_that_are_no_tensors_or_not_finite_are_named(tmp_path: Path):
    torch.save({"model": LIVE | {"bias": datetime.timedelta(1)}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"bias is no tensor but datetime\.timedelta"):
        load_released_generator(network(0.0), tmp_path / "w.pt")
    torch.save({"model": LIVE | {"bias": torch.tensor([1.0, float("nan")])}}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="bias has values that are not finite"):
        load_released_generator(network(0.0), tmp_path / "w.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_mutated_files_are_refused_or_read(tmp_path: Path, legacy: bool):
    path = tmp_path / "w.pt"
    torch.save({"model": LIVE, **EXTRAS}, path, _use_new_zipfile_serialization=not legacy)
    written = path.read_bytes()
    refused = 0
    for seed in range(300):
        rng, data = random.Random(seed), bytearray(written)
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data)) if seed % 3 == 0 else len(data)])
        try:
            read_weight_file(path)
        except ValueError:
            refused += 1
    assert refused > 100


def test_numbers_that_nobody_computes_with_are_named(tmp_path: Path):
    """Four-bit floats, two in a byte, as newer files may have them."""
    header = b'{"bias":{"dtype":"F4","shape":[4],"data_offsets":[0,2]}}'
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2))
    with pytest.raises(ValueError, match=r"bias holds numbers of torch\.float4"):
        load_released_generator(network(0.0), tmp_path / "w.safetensors")
