"""What must hold on a GPU: tokens, compiled steps, ZeRO stages."""

from __future__ import annotations

from typing import Any

import torch

from ifsq_train.config import StrategyConfig
from ifsq_train.models.quantizers import FSQ
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


def check_compile(bench: Bench) -> None:
    """`strategy.compile` gives the losses of an uncompiled step, in fp32."""
    for build in (llamagen_task, dit_task):
        losses = {compiled: _losses(bench, build, {}, compiled) for compiled in (False, True)}
        _compare(bench, f"compile: {build.__name__}", losses[True], losses[False])


def check_zero(bench: Bench) -> None:
    """DeepSpeed at every ZeRO stage gives the losses of plain torch, in fp32."""
    expected = _losses(bench, llamagen_task, {}, False)
    for stage in range(4):
        engine = {"kind": "deepspeed", "zero_stage": stage}
        _compare(
            bench, f"ZeRO stage {stage}", _losses(bench, llamagen_task, engine, False), expected
        )


def _losses(bench: Bench, build: Any, engine: dict[str, Any], compiled: bool) -> list[float]:
    settings = StrategyConfig.model_validate({"kind": "torch", "precision": "fp32", **engine})
    task, batch, optim = build(bench, "small", 4)
    step = engine_step(task, batch, optim, settings, bench.device, compiled=compiled)
    return [step() for _ in range(STEPS)]


def _compare(bench: Bench, what: str, found: list[float], expected: list[float]) -> None:
    apart = max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))
    bench.check(what, apart < 1e-4, losses=[round(loss, 6) for loss in found], apart=apart)
