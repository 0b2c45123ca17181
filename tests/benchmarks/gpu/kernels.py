"""Where a step's time goes on the device, and which attention is taken."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from ifsq_train.config import StrategyConfig
from tests.benchmarks.generators.engine_step import engine_step
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.steps import llamagen_task

TOP = 20


def top_kernels(bench: Bench) -> None:
    """The kernels with the largest share of a LlamaGen-L step, as recipes run it."""
    task, batch, optim = llamagen_task(bench, "small" if bench.tiny else "L", bench.size(32, 2))
    settings = StrategyConfig(kind="torch", precision="bf16")
    step = engine_step(task, batch, optim, settings, bench.device)
    for _ in range(1 if bench.tiny else 4):
        step()
    bench.wait()
    cuda = bench.device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as record:
        step()
        bench.wait()
    events = record.key_averages()

    def microseconds(event: object) -> float:
        name = "self_device_time_total" if cuda else "self_cpu_time_total"
        return float(getattr(event, name))

    total = sum(microseconds(event) for event in events)
    for event in sorted(events, key=microseconds, reverse=True)[:TOP]:
        spent = microseconds(event)
        bench.emit(
            f"kernel {event.key[:80]}",
            ms=round(spent / 1e3, 3),
            calls=event.count,
            share=round(spent / max(total, 1.0), 4),
        )
    bench.emit("kernels of a step", count=sum(event.count for event in events))


def attention_backends(bench: Bench) -> None:
    """Milliseconds of forward and backward by backend, beside the one that is chosen."""
    shape = (bench.size(32, 1), bench.size(16, 2), bench.size(256, 16), 64)
    parts = [
        torch.randn(shape, device=bench.device, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    ]

    def run() -> None:
        F.scaled_dot_product_attention(
            parts[0], parts[1], parts[2], is_causal=True
        ).sum().backward()

    bench.emit("attention: chosen", ms=round(bench.seconds(run) * 1e3, 3))
    for backend in (
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ):
        try:
            with sdpa_kernel(backend):
                bench.emit(f"attention: {backend.name}", ms=round(bench.seconds(run) * 1e3, 3))
        except RuntimeError as error:
            bench.emit(f"attention: {backend.name}", refused=str(error).splitlines()[0][:120])
