"""What must hold on a GPU: tokens, compiled steps, ZeRO stages."""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.utils import counters

from ifsq_train.config import StrategyConfig
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.models.quantizers import FSQ
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from tests.benchmarks.generators.engine_step import engine_step
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.steps import build_tokenizer, dit_task, llamagen_task, random_images

STEPS = 3


def check_tokens(bench: Bench) -> None:
    """Same latents give the same tokens under autocast; how many change with a bf16 network."""
    latents = torch.randn(64, 4, 16, 16, device=bench.device)
    for levels in ([17] * 4, [17] * 6, [17] * 8, [65] * 4):
        quantizer = FSQ(levels).to(bench.device)
        z = latents.repeat(1, 2, 1, 1)[:, : len(levels)]
        exact = quantizer(z)
        with bench.autocast():
            mixed = quantizer(z).indices
        name = f"{levels[0]}^{len(levels)}"
        bench.check(f"tokens {name}: autocast", torch.equal(mixed, exact.indices))
        back = quantizer.indices_to_latents(exact.indices)
        bench.check(f"tokens {name}: round trip", torch.equal(back, exact.latents))
    cpu = FSQ([17] * 4)(latents.cpu()).indices
    gpu = FSQ([17] * 4).to(bench.device)(latents).indices.cpu()
    bench.emit("tokens: share that differs from the CPU", share=float((cpu != gpu).float().mean()))
    tokenizer, images = build_tokenizer(bench).eval(), random_images(bench, bench.size(32, 2))
    with torch.no_grad():
        exact = tokenizer.encode(images).indices
        with bench.autocast():
            rounded = tokenizer.encode(images).indices
    share = float((exact != rounded).float().mean())
    bench.emit("tokens: share that a bf16 network changes", share=share)


def check_greedy(bench: Bench) -> None:
    """Compiled greedy tokens are the eager ones, in fp32 and over two batch sizes."""
    task, *_ = llamagen_task(bench, "small", 1)
    model = task.modules()[GENERATOR].to(bench.device).eval().requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.5)
    for count in (8, 5):
        labels = torch.arange(count, device=bench.device)
        eager, compiled = (
            sample_tokens(
                model,
                labels,
                range(count),
                SamplingConfig(cfg_scale=2.0, greedy=True, compiled=compiled),
            )
            for compiled in (False, True)
        )
        bench.check(f"compiled greedy tokens, batch {count}", torch.equal(eager, compiled))
    skips = counters["inductor"]["cudagraph_skips"]
    bench.check("CUDA graphs skipped", skips == 0, count=skips)


def check_precision(bench: Bench) -> None:
    """Losses of the first steps in bf16 beside fp32."""
    for build in (llamagen_task, dit_task):
        exact, rounded = (
            _losses(bench, build, {"precision": precision, "compile": False})
            for precision in ("fp32", "bf16")
        )
        apart = max(abs(a - b) / abs(b) for a, b in zip(rounded, exact, strict=True))
        bench.check(f"bf16 against fp32: {build.__name__}", apart < 2e-2, apart=apart)


def check_repeat(bench: Bench) -> None:
    """Two runs with deterministic kernels have the same bits."""
    for build in (llamagen_task, dit_task):
        settings = {"precision": "bf16", "deterministic": True}
        first, second = (_losses(bench, build, settings) for _ in range(2))
        bench.check(f"two runs are equal: {build.__name__}", first == second, losses=first)


def check_compile(bench: Bench) -> None:
    """`strategy.compile` gives the losses of an uncompiled step, in fp32."""
    for build in (llamagen_task, dit_task):
        plain = _losses(bench, build, {"compile": False})
        for way in ("auto", True):
            found = _losses(bench, build, {"compile": way})
            _compare(bench, f"compile {way}: {build.__name__}", found, plain)


def check_zero(bench: Bench) -> None:
    """DeepSpeed at every ZeRO stage gives the losses of plain torch, in fp32."""
    expected = _losses(bench, llamagen_task, {"compile": False})
    for stage in range(4):
        engine = {"kind": "deepspeed", "zero_stage": stage, "compile": False}
        _compare(bench, f"ZeRO stage {stage}", _losses(bench, llamagen_task, engine), expected)
    if not bench.tiny:
        settings = StrategyConfig(kind="deepspeed", zero_stage=1, precision="bf16")
        task, batch, optim = llamagen_task(bench, "L", 32)
        step = engine_step(task, batch, optim, settings, bench.device)
        bench.report("LlamaGen-L, ZeRO stage 1, batch 32", 32, step, 1.0)


def _losses(bench: Bench, build: Any, engine: dict[str, Any]) -> list[float]:
    settings = StrategyConfig.model_validate({"kind": "torch", "precision": "fp32", **engine})
    task, batch, optim = build(bench, "small", 4)
    step = engine_step(task, batch, optim, settings, bench.device)
    return [step() for _ in range(STEPS)]


def _compare(bench: Bench, what: str, found: list[float], expected: list[float]) -> None:
    apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    bench.check(what, apart < 1e-4, losses=[round(loss, 6) for loss in found], apart=apart)
