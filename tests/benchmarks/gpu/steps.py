"""Networks, and whole training steps as the loop takes them: task, engine, average."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipelines.tokens.latents import LatentStatistics
from ifsq_train.config import (
    AutoregressiveTaskConfig,
    DiffusionTaskConfig,
    OptimConfig,
    StrategyConfig,
)
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.data.batch import Batch
from ifsq_train.losses.adversarial import discriminator_loss, generator_loss
from ifsq_train.models import dit, llamagen
from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.discriminator import PatchDiscriminator
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.perceptual import Lpips
from ifsq_train.models.quantizers import FSQ
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from ifsq_train.tasks.diffusion import DiffusionTask
from ifsq_train.tasks.frozen import LatentInputs
from tests.benchmarks.generators.engine_step import engine_step
from tests.benchmarks.gpu.bench import Bench, count_flops

SMALL: dict[str, int] = {"num_layers": 2, "num_heads": 4, "dim": 64}
STILL = {"token_dropout": 0.0, "residual_dropout": 0.0, "feed_forward_dropout": 0.0}


def build_tokenizer(bench: Bench) -> Tokenizer:
    """The f16 tokenizer of the paper, or a small one."""
    torch.manual_seed(0)
    base = bench.size(128, 32)
    return Tokenizer(FSQ([17] * 4, track_statistics=True), base_channels=base).to(bench.device)


def random_images(bench: Bench, count: int) -> Tensor:
    """Float [count, 3, S, S] in [-1, 1], channels last."""
    side = bench.size(256, 32)
    return channels_last(torch.rand(count, 3, side, side, device=bench.device) * 2 - 1)


def llamagen_task(bench: Bench, size: str, count: int) -> tuple[Any, Batch, OptimConfig]:
    """LlamaGen on 17^4 codes and 16 x 16 tokens; ``small`` has no dropout and 289 codes."""
    torch.manual_seed(0)
    small = size == "small"
    shape: dict[str, Any] = SMALL | STILL if small else dict(llamagen.SIZES[size])
    codes, side = (289, 4) if small else (17**4, 16)
    model = llamagen.LlamaGen(**shape, codebook_sizes=[codes], grid=(side, side))
    config = AutoregressiveTaskConfig.model_validate(
        {"kind": "autoregressive", "model": {"size": "custom", **SMALL}}
    )
    tokens = torch.randint(codes, (count, side * side), device=bench.device)
    batch = Batch(tokens, torch.arange(count, device=bench.device), np.arange(count))
    optim = OptimConfig(lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05)
    return AutoregressiveTask(config, model, None, None), batch, optim


def dit_task(bench: Bench, size: str, count: int) -> tuple[Any, Batch, OptimConfig]:
    """DiT with patches of 2 on f8 latents of 4 channels, 32 x 32; ``small`` on 8 x 8."""
    torch.manual_seed(0)
    small = size == "small"
    shape, side = (SMALL, 8) if small else (dit.SIZES[size], 32)
    kind: dict[str, Any] = {"latent_channels": 4, "grid": (side, side), "patch_size": 2}
    model = dit.DiT(**shape, **kind)
    config = DiffusionTaskConfig.model_validate(
        {"kind": "diffusion", "model": {"size": "custom", **SMALL}}
    )
    inputs = LatentInputs(LatentStatistics((0.0,) * 4, (1.0,) * 4, 0), (side, side))
    latents = torch.randn(count, 4, side, side, device=bench.device)
    batch = Batch(latents, torch.arange(count, device=bench.device), np.arange(count))
    optim = OptimConfig(lr=2e-4, betas=(0.9, 0.95), max_grad_norm=None)
    return DiffusionTask(config, model, inputs), batch, optim


def measure_llamagen(bench: Bench) -> None:
    """LlamaGen-L at the paper's batch of a GPU, eager and as recipes run it, and the largest."""
    measure_steps(bench, llamagen_task, "L", [32], ways=("auto", False))
    measure_steps(bench, llamagen_task, "L", [256, 128, 64], ways=("auto",))


def measure_dit(bench: Bench) -> None:
    """DiT-L/2 in batches of 128."""
    measure_steps(bench, dit_task, "L", [128, 64], ways=("auto", False))


def measure_steps(
    bench: Bench, build: Any, size: str, counts: list[int], *, ways: tuple[Any, ...]
) -> None:
    """Steps in the largest batch that fits, by `strategy.compile`."""
    for way in ways:
        settings = StrategyConfig(kind="torch", precision="bf16", compile=way)
        name = f"{build.__name__.removesuffix('_task')}-{size} step, compile {way}"

        def attempt(count: int, settings: StrategyConfig = settings, name: str = name) -> None:
            # What a compiled graph does the counter cannot see: the plain one is counted.
            chosen = "small" if bench.tiny else size
            plain = StrategyConfig(kind="torch", precision="bf16", compile=False)
            task, batch, optim = build(bench, chosen, 2)
            flops = count_flops(engine_step(task, batch, optim, plain, bench.device))
            task, batch, optim = build(bench, chosen, count)
            step = engine_step(task, batch, optim, settings, bench.device)
            bench.report(f"{name}, batch {count}", count, step, flops * count / 2)

        bench.largest(name, [2] if bench.tiny else counts, attempt)


def measure_tokenizer(bench: Bench) -> None:
    """A generator and a discriminator step, LPIPS included (random weights cost the same)."""
    tokenizer = build_tokenizer(bench).train()
    tokenizer.quantize.measure_use = False
    critic = PatchDiscriminator(64, bench.size(4, 2)).to(bench.device)
    lpips = Lpips("vgg16").to(bench.device).eval().requires_grad_(False)
    own, others = (
        torch.optim.AdamW(part.parameters(), lr=1e-4, fused=True) for part in (tokenizer, critic)
    )
    images = random_images(bench, bench.size(16, 1))

    def generator_step() -> None:
        critic.requires_grad_(False)
        with bench.autocast():
            made, _ = tokenizer(images)
            loss = (images - made).abs().mean() + lpips(made, images).float().mean()
            loss = loss + 0.1 * generator_loss(critic(made).float())
        _update(own, tokenizer, loss)

    def discriminator_step() -> None:
        critic.requires_grad_(True)
        with bench.autocast():
            with torch.no_grad():
                made, _ = tokenizer(images)
            loss = discriminator_loss(critic(images).float(), critic(made).float(), "hinge")
        _update(others, critic, loss)

    bench.report("tokenizer generator step, bf16", len(images), generator_step)
    bench.report("tokenizer discriminator step, bf16", len(images), discriminator_step)


def _update(optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
    loss.backward()
    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def measure_encode(bench: Bench) -> None:
    """f16, images to tokens: fp32 and bf16, as it is, prepared for inference, and compiled."""
    images = random_images(bench, bench.size(64, 2))
    plain = build_tokenizer(bench).eval()
    prepared = optimize_for_inference(copy.deepcopy(plain))
    compiled = copy.deepcopy(prepared)
    compiled.encoder.compile()
    for name, network in (("plain", plain), ("prepared", prepared), ("compiled", compiled)):
        given = images.contiguous() if name == "plain" else images
        for low in (False, True):

            def encode(
                network: Tokenizer = network, given: Tensor = given, low: bool = low
            ) -> Tensor:
                autocast = torch.autocast(bench.device.type, torch.bfloat16, enabled=low)
                with torch.inference_mode(), autocast:
                    return network.encode(given).indices

            flops = count_flops(lambda: plain.encode(images)) if name == "compiled" else 0.0
            precision = "bf16" if low else "fp32"
            bench.report(f"encode f16, {name}, {precision}", len(images), encode, flops)


def measure_sampling(bench: Bench) -> None:
    """64 images' tokens with guidance, as they come and with CUDA graphs, and decoding them."""
    count = bench.size(64, 2)
    task, *_ = llamagen_task(bench, "small" if bench.tiny else "L", 1)
    model = task.modules()[GENERATOR].to(bench.device).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    labels = torch.arange(count, device=bench.device)
    for compiled in (False, True):
        config = SamplingConfig(cfg_scale=2.0, compiled=compiled)

        def sample(config: SamplingConfig = config) -> Tensor:
            with torch.inference_mode(), bench.autocast():
                return sample_tokens(model, labels, range(count), config)

        flops = 0.0
        if compiled:
            flops = count_flops(lambda: sample(SamplingConfig(cfg_scale=2.0)))
        name = f"LlamaGen-L sampling, guided{', CUDA graphs' * compiled}"
        bench.report(name, count, sample, flops)
    side = bench.size(16, 2)
    latents = torch.zeros(count, 4, side, side, device=bench.device)
    tokenizer = optimize_for_inference(build_tokenizer(bench))

    def decode() -> None:
        with torch.inference_mode(), bench.autocast():
            tokenizer.decode(channels_last(latents))

    bench.report("f16 decode", count, decode)
