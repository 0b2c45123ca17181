"""Every task's step, and the uses of trained networks, at the paper's sizes.

    python -m tests.fake_cuda.cases [--write]

prints what was counted as JSON; `--write` puts it into `table.json`, which a test compares with.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    TokenizerTaskConfig,
)
from ifsq_train.data.batch import Batch
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import F8_MULTIPLIERS, F16_MULTIPLIERS, Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.quantizers import FSQ, LFQ, VQ
from ifsq_train.randomness import BatchRandom
from ifsq_train.sampling.drawing import SamplingConfig
from ifsq_train.sampling.static_decoder import StaticDecoder
from ifsq_train.strategy.base import frozen
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.base import StepInfo, with_draws
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import Alignment, LatentInputs
from ifsq_train.tasks.tokenizer_gan import TokenizerTask
from tests.fake_cuda.device import enable, move
from tests.fake_cuda.trace import Trace, kernels_of_a_gpu

TABLE = Path(__file__).with_name("table.json")
Counted = dict[str, Any]


@dataclass(frozen=True)
class Watch:
    """How cases are looked at.

    Attributes:
        trace: makes what counts.
        prepare: changes what runs, before it does.
    """

    trace: Callable[[], Trace] = Trace
    prepare: Callable[[Any, Sequence[nn.Module]], None] = lambda _trace, _networks: None


watch = Watch()


class Bf16:
    """The part of a strategy that a loss needs."""

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16)


def step(task: Any, update: str, batch: Batch, number: int = 0) -> Counted:
    """Forward and backward of one update, as the loop takes them between log lines."""
    modules = task.modules()
    for network in (*modules.values(), *task.auxiliary().values()):
        move(network)
    for network in task.auxiliary().values():
        network.requires_grad_(False).eval()
    random = BatchRandom(0, number, batch.positions)
    # As the loop has it: drawn while the batch was loaded, copied with it.
    batch = with_draws(batch, task, random)
    random = replace(random, ahead={name: draw.to("cuda") for name, draw in batch.draws.items()})
    info = StepInfo(number, random, 1.0, 1, Bf16(), False)
    with watch.trace() as trace:
        watch.prepare(trace, list(modules.values()))
        for network in modules.values():
            for parameter in network.parameters():
                trace.hold(parameter)
        with frozen([network for name, network in modules.items() if name != update]):
            task.loss(update, modules, batch, info).loss.backward()
    for name, parameter in modules[update].named_parameters():
        assert parameter.grad is None or parameter.grad.device.type == "cuda", name
    return counted(trace, len(batch))


def counted(trace: Trace, samples: int) -> Counted:
    """What the table holds."""
    return {
        "kernels": trace.kernels,
        "waits": dict(sorted(trace.waits.items())),
        "gflop_per_sample": round(trace.flops / samples / 1e9, 3),
        "gib_moved": round(trace.moved / 2**30, 2),
        "peak_gib": round(trace.peak / 2**30, 3),
    }


def labels(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int64, device="cuda")


def llamagen_step(size: str, count: int, codes: Sequence[int], *, repa: bool = False) -> Counted:
    """LlamaGen on 16 x 16 tokens."""
    model = llamagen.LlamaGen(
        **llamagen.SIZES[size],
        codebook_sizes=codes,
        grid=(16, 16),
        projection_dims=(768,) if repa else (),
    )
    shape = (count, 256) if len(codes) == 1 else (count, 256, len(codes))
    tokens = torch.zeros(shape, dtype=torch.int64, device="cuda")
    features = torch.zeros(count, 256, 768, device="cuda") if repa else None
    config = AutoregressiveTaskConfig.model_validate(
        {"kind": "autoregressive", "model": {"size": size}}
    )
    task = AutoregressiveTask(config, model, None, Alignment(None, 0.5) if repa else None)
    batch = Batch(tokens, labels(count), np.arange(count), features=features)
    return step(task, "generator", batch)


def dit_step(size: str, count: int, *, repa: bool = False) -> Counted:
    """DiT with patches of 2 on f8 latents, 32 x 32."""
    shape: dict[str, Any] = dict(dit.SIZES[size])
    model = dit.DiT(
        **shape,
        latent_channels=4,
        grid=(32, 32),
        patch_size=2,
        projection_dims=(768,) if repa else (),
    )
    features = torch.zeros(count, 256, 768, device="cuda") if repa else None
    config = DiffusionTaskConfig.model_validate({"kind": "diffusion", "model": {"size": size}})
    inputs = LatentInputs(LatentStatistics((0.0,) * 4, (1.0,) * 4, 0), (32, 32))
    task = DiffusionTask(config, model, inputs, Alignment(None, 0.5) if repa else None)
    latents = torch.zeros(count, 4, 32, 32, device="cuda")
    batch = Batch(latents, labels(count), np.arange(count), features)
    inputs(batch)  # constants of the first step
    return step(task, "generator", batch)


def quantizer_of(kind: str) -> tuple[Any, dict[str, Any]]:
    """A quantizer with real constants, as its constructor reads values, and its recipe."""
    with unset_fake_temporarily():
        if kind == "vq":
            return VQ(16384, 8), {"kind": "vq", "codebook_size": 16384, "num_channels": 8}
        if kind == "lfq":
            return LFQ(14), {"kind": "lfq", "num_channels": 14}
        quantizer = FSQ([17] * 4, track_statistics=True)
        return quantizer, {"kind": "fsq", "levels": [17] * 4}


def tokenizer_step(kind: str, update: str, multipliers: Sequence[int], count: int) -> Counted:
    """The tokenizer with LPIPS and the discriminator, 256 px."""
    quantizer, recipe = quantizer_of(kind)
    config = TokenizerTaskConfig.model_validate(
        {
            "kind": "tokenizer",
            "pixel_loss": "l1",
            "adversarial": {"start_step": 0, "weight": 0.5},
            "model": {
                "channel_multipliers": list(multipliers),
                "base_channels": 128,
                "quantizer": recipe,
            },
        }
    )
    model = Tokenizer(quantizer, channel_multipliers=multipliers)
    task = TokenizerTask(config, model, PatchDiscriminator(64, 4), Lpips("vgg16"))
    images = torch.zeros(count, 3, 256, 256, device="cuda")
    return step(task, update, Batch(images, labels(count), np.arange(count)))


def trained(act: Callable[[nn.Module], object], network: nn.Module, samples: int) -> Counted:
    """A use of a network without gradients."""
    move(network).eval().requires_grad_(False)
    with torch.no_grad(), Bf16().autocast(), watch.trace() as trace:
        watch.prepare(trace, [network])
        for parameter in network.parameters():
            trace.hold(parameter)
        act(network)
    return counted(trace, samples)


def encode(count: int) -> Counted:
    """f16 images to tokens."""
    images = torch.zeros(count, 3, 256, 256, device="cuda")
    network = Tokenizer(quantizer_of("fsq")[0], channel_multipliers=F16_MULTIPLIERS)
    return trained(lambda net: net.encode(images), network, count)  # pyright: ignore


def decode(count: int) -> Counted:
    """f16 latents to images."""
    latents = torch.zeros(count, 4, 16, 16, device="cuda")
    network = Tokenizer(quantizer_of("fsq")[0], channel_multipliers=F16_MULTIPLIERS)
    return trained(lambda net: net.decode(latents), network, count)  # pyright: ignore


def sample_token(count: int) -> Counted:
    """One guided token of LlamaGen-L in the middle of a sequence, as CUDA graphs hold it; weights
    in bf16, as `precision: bf16` samples."""
    model = llamagen.LlamaGen(**llamagen.SIZES["L"], codebook_sizes=[17**4], grid=(16, 16))
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    decoder = StaticDecoder(model, count, lambda function: function)
    config = SamplingConfig(cfg_scale=2.0)

    def act(_: nn.Module) -> None:
        x = torch.zeros(2 * count, 1, 1024, device="cuda")
        uniform = torch.zeros(count, 1, dtype=torch.float64, device="cuda")
        place = torch.zeros(1, dtype=torch.int64, device="cuda")
        decoder(x, uniform, place, 128, config, True)

    return trained(act, decoder, count)


CASES: dict[str, Callable[[], Counted]] = {
    "LlamaGen-L, 83,521 codes, batch 32": lambda: llamagen_step("L", 32, [17**4]),
    "LlamaGen-L with REPA, batch 32": lambda: llamagen_step("L", 32, [17**4], repa=True),
    "LlamaGen-L, two groups of 289, batch 32": lambda: llamagen_step("L", 32, [289, 289]),
    "DiT-L/2, batch 128": lambda: dit_step("L", 128),
    "DiT-L/2 with REPA, batch 128": lambda: dit_step("L", 128, repa=True),
    **{
        f"tokenizer {kind} f16, {update}, batch 16": (
            lambda kind=kind, update=update: tokenizer_step(kind, update, F16_MULTIPLIERS, 16)
        )
        for kind in ("fsq", "vq", "lfq")
        for update in ("autoencoder", "discriminator")
    },
    "tokenizer fsq f8, autoencoder, batch 8": lambda: tokenizer_step(
        "fsq", "autoencoder", F8_MULTIPLIERS, 8
    ),
    "encode f16, batch 64": lambda: encode(64),
    "decode f16, batch 64": lambda: decode(64),
    "sample one token, LlamaGen-L, batch 64": lambda: sample_token(64),
}


def main() -> None:
    """Run all cases."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--write", action="store_true")
    options.add_argument("--only", nargs="+", default=list(CASES), choices=list(CASES))
    args = options.parse_args()
    enable()
    found: dict[str, Any] = {"torch": torch.__version__.split("+")[0]}
    for name in args.only:
        with kernels_of_a_gpu(), FakeTensorMode(allow_non_fake_inputs=True):
            found[name] = CASES[name]()
    text = json.dumps(found, indent=1) + "\n"
    if args.write:
        TABLE.write_text(text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
