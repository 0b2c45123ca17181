"""What `ifsq plan` says is what is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import F16_MULTIPLIERS, Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.quantizers import FSQ
from ifsq_train.planning.estimate import communication_bytes, forward_flops

ROOT = Path(__file__).resolve().parents[4]
TABLE: dict[str, Any] = json.loads((ROOT / "tests" / "fake_cuda" / "table.json").read_text())

COUNTING = """
import collections, os, sys
import torch, torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
world = 8
dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world)
os.environ.update(LOCAL_RANK="0", RANK="0", WORLD_SIZE=str(world))
from ifsq_train.config import OptimConfig, StrategyConfig
from ifsq_train.strategy import deepspeed as engine
from ifsq_train.strategy.deepspeed import DeepSpeedStrategy
settings = engine.zero_options
engine.zero_options = lambda stage, device: settings(stage, "cuda")  # what a GPU would be given
class Context:
    rank, world_size, local_rank, device = 0, world, 0, torch.device("cpu")
moved = collections.Counter()
def counted(name):
    plain = getattr(dist, name)
    def call(*args, **kwargs):
        tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
        moved[name] += max((t.numel() * t.element_size() for t in tensors), default=0)
        return plain(*args, **kwargs)
    setattr(dist, name, call)
names = "all_reduce reduce all_gather_into_tensor reduce_scatter_tensor broadcast"
for name in names.split():
    counted(name)
for stage, micro in ((0, 1), (1, 1), (1, 4), (2, 1), (2, 4), (3, 1), (3, 4)):
    strategy = DeepSpeedStrategy(StrategyConfig(kind="deepspeed", zero_stage=stage), Context())
    net = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(8)])
    count = sum(p.numel() for p in net.parameters())
    strategy.prepare({"g": net}, {"g": OptimConfig(lr=1e-4)}, 10)
    for _ in range(2):  # the second step is what every later one does
        moved.clear()
        for i in range(micro):
            with strategy.updating("g", last_micro_batch=i == micro - 1) as modules:
                strategy.backward("g", modules["g"](torch.randn(4, 512)).square().mean())
        strategy.step("g")
    ring = sum((2 if n == "all_reduce" else 1) * b * (world - 1) / world for n, b in moved.items())
    print("COUNTED", stage, micro, count, ring)
"""


@pytest.mark.slow
def test_bytes_sent_are_those_deepspeed_hands_to_the_collectives() -> None:
    """In a group that exists only in name, so that every collective can be counted."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTING], capture_output=True, text=True, check=False,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("COUNTED")]
    assert len(lines) == 7
    for stage, micro, count, ring in lines:
        said = communication_bytes(int(count), int(stage), 8, int(micro))
        assert said == pytest.approx(float(ring), rel=0.05), (stage, micro)


def forward_gflop(network: torch.nn.Module, *inputs: torch.Tensor) -> float:
    return forward_flops({"net": network}, {"net": inputs})["net"] / 1e9


def test_operations_are_those_of_a_counted_step() -> None:
    """Three forward passes, within 2 % of forward and backward at the paper's sizes."""
    one = torch.zeros(1, dtype=torch.int64)
    quantizer = FSQ([17] * 4, track_statistics=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        tokens = torch.zeros(1, 256, dtype=torch.int64)
        ar = llamagen.LlamaGen(**llamagen.SIZES["L"], codebook_sizes=[17**4], grid=(16, 16))
        said = {"LlamaGen-L, 83,521 codes, batch 32": 3 * forward_gflop(ar, tokens, one)}
        shape: dict[str, Any] = {**dit.SIZES["L"], "latent_channels": 4, "grid": (32, 32)}
        flow = dit.DiT(**shape, patch_size=2)
        latents = torch.zeros(1, 4, 32, 32)
        said["DiT-L/2, batch 128"] = 3 * forward_gflop(flow, latents, torch.zeros(1), one)
        image = torch.zeros(1, 3, 256, 256)
        network = Tokenizer(quantizer, channel_multipliers=F16_MULTIPLIERS)
        autoencoder = forward_gflop(network, image)
        critic = forward_gflop(PatchDiscriminator(64, 4), image)
        lpips = forward_gflop(Lpips("vgg16"), image, image) / 2
        said["tokenizer fsq f16, autoencoder, batch 16"] = 3 * (autoencoder + lpips) + 2 * critic
        said["tokenizer fsq f16, discriminator, batch 16"] = autoencoder + 6 * critic
    for name, gflop in said.items():
        assert gflop == pytest.approx(TABLE[name]["gflop_per_sample"], rel=0.02), name
