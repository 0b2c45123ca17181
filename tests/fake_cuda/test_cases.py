"""What every task runs on a GPU is what the committed table says: changes must be meant."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.device import can_be_built

ROOT = Path(__file__).resolve().parents[2]
TABLE: dict[str, Any] = json.loads(Path(__file__).with_name("table.json").read_text())
UPDATE = "`python -m tests.fake_cuda.cases --write` writes the table anew"
NAMES = [name for name in TABLE if name != "torch"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not can_be_built(), reason="needs g++, and a torch built without CUDA"),
]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """All cases, in a process of their own: its torch believes in a GPU until it ends."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fake_cuda.cases"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_table_has_every_case(found: dict[str, Any]) -> None:
    assert list(found) == list(TABLE), UPDATE


@pytest.mark.parametrize("name", NAMES)
def test_the_host_waits_as_often_as_the_table_says(found: dict[str, Any], name: str) -> None:
    assert found[name]["waits"] == TABLE[name]["waits"], UPDATE
    # No value is asked for and nothing copied: the loop brings draws along with the batch.
    assert found[name]["waits"] == {}


@pytest.mark.parametrize("name", NAMES)
def test_operations_kernels_and_memory_are_those_of_the_table(
    found: dict[str, Any], name: str
) -> None:
    mine, table = found[name], TABLE[name]
    assert mine["gflop_per_sample"] == pytest.approx(table["gflop_per_sample"], rel=1e-4), UPDATE
    if found["torch"] != TABLE["torch"]:
        pytest.skip(f"kernels and memory are those of torch {TABLE['torch']}")
    assert mine["kernels"] == table["kernels"], UPDATE
    assert mine["peak_gib"] == pytest.approx(table["peak_gib"], rel=0.01), UPDATE
    assert mine["gib_moved"] == pytest.approx(table["gib_moved"], rel=0.01), UPDATE


def test_dit_xl_2_has_the_published_operations() -> None:
    """118.6 GMAC forward at 256 px (Peebles and Xie 2023), counted without the variants this
    project's default adds."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from ifsq_train.metrics.flops import FlopCounter
    from ifsq_train.models.dit import SIZES, DiT

    with FakeTensorMode():
        import torch

        plain: dict[str, Any] = dict.fromkeys(("qk_norm", "swiglu", "rotary", "rms_norm"), False)
        grid: dict[str, Any] = {"latent_channels": 4, "grid": (32, 32), "patch_size": 2}
        model = DiT(**SIZES["XL"], **grid, **plain, learn_sigma=True).eval()
        x, one = torch.zeros(1, 4, 32, 32), torch.zeros(1, dtype=torch.int64)
        with torch.no_grad(), FlopCounter() as counter:
            model(x, torch.zeros(1), one)
    assert counter.total / 2 == pytest.approx(118.6e9, rel=0.01)
