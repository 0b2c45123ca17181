"""Checks of the ten-minute script at small sizes, and what else only a device can answer.

pytest -m gpu
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from ifsq_train.config import StrategyConfig
from ifsq_train.config.tasks import GENERATOR
from ifsq_train.models.autoencoder import ImageNorm
from ifsq_train.models.float8 import Float8Linear, reference_product
from ifsq_train.models.inference import channels_last
from ifsq_train.randomness import BatchRandom
from ifsq_train.strategy.network_options import change_networks
from ifsq_train.tasks.base import StepInfo
from ifsq_train.training.kernels import choose_kernels, compile_networks
from tests.benchmarks.gpu import checks, saving
from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.steps import dit_task, llamagen_task

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
BUILDERS = {"llamagen": llamagen_task, "dit": dit_task}


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cuda"), True, 989.0, 1, [])


@pytest.mark.parametrize(
    "check",
    [
        "check_tokens",
        "check_greedy",
        "check_precision",
        "check_repeat",
        "check_compile",
        "check_zero",
    ],
)
def test_a_check_of_the_script_holds(bench: Bench, check: str) -> None:
    try:
        getattr(checks, check)(bench)
    finally:
        torch.use_deterministic_algorithms(False)
    assert bench.failures == []


def test_ifsq_train_runs_on_the_gpu(bench: Bench) -> None:
    saving.real_training(bench)
    assert bench.failures == []


class Bf16:
    """The part of a strategy that a loss needs."""

    def autocast(self) -> torch.autocast:
        return torch.autocast("cuda", torch.bfloat16)


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def loss_of(bench: Bench, kind: str, settings: StrategyConfig, steps: int = 2) -> Any:
    """Loss of the last of several steps without updates; only it may not wait."""
    task, batch, _ = BUILDERS[kind](bench, "small", 4)
    choose_kernels(bench.device, settings)
    for network in task.modules().values():
        network.to(bench.device)
    change_networks(settings, task.modules(), bench.device)
    compile_networks(settings, task, "cuda")
    loss = None
    for number in range(steps):
        random = BatchRandom(0, number, batch.positions)
        info = StepInfo(number, random, 1.0, 1, Bf16(), False)
        if number == steps - 1:
            with waiting_is_an_error():
                loss = task.loss(GENERATOR, task.modules(), batch, info).loss
                loss.backward()
        else:
            task.loss(GENERATOR, task.modules(), batch, info).loss.backward()
    return loss


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("way", [False, "auto"])
def test_the_host_waits_for_no_step(bench: Bench, kind: str, way: Any) -> None:
    assert torch.isfinite(loss_of(bench, kind, StrategyConfig(precision="bf16", compile=way)))


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(
    "option", [{"residual": "bf16"}, {"activation_checkpointing": "selective"}, {"float8": True}]
)
def test_options_stay_near_the_plain_loss(bench: Bench, kind: str, option: dict[str, Any]) -> None:
    if "float8" in option and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no float8")
    plain = loss_of(bench, kind, StrategyConfig(precision="bf16"))
    found = loss_of(bench, kind, StrategyConfig.model_validate({"precision": "bf16", **option}))
    assert abs(float(found) - float(plain)) < 3e-2 * abs(float(plain))


def test_float8_products_are_those_of_rounded_factors() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU multiplies no float8")
    torch.manual_seed(0)
    layer = Float8Linear(128, 64, device="cuda")
    x = torch.randn(32, 128, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = layer(x)
    expected = reference_product(x, layer.weight) + layer.bias
    assert (found - expected).abs().max() < 2e-2 * expected.abs().max()


def test_compiled_norms_keep_channels_last() -> None:
    norm = ImageNorm(8, 32).cuda()
    x = channels_last(torch.randn(2, 32, 8, 8, device="cuda"))
    found = torch.compile(norm)(x)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(found, norm(x), atol=1e-5)


def test_a_checkpoint_of_a_gpu_run_holds_its_weights(tmp_path: Path) -> None:
    """Copied through page-locked memory while the device computes on."""
    from ifsq_train.checkpoint.format import Piece, step_folder
    from ifsq_train.checkpoint.reader import Checkpoint
    from ifsq_train.checkpoint.retention import Retention
    from ifsq_train.checkpoint.writer import CheckpointWriter

    writer = CheckpointWriter(tmp_path, rank=0, world_size=1, attempt="a", retention=Retention(1))
    values = torch.arange(1 << 20, dtype=torch.float32, device="cuda")
    writer.save(1, [Piece("net", "w", "master", (1 << 20,), 0, values)], {}, {})
    values.zero_()
    writer.close()
    saved = Checkpoint(step_folder(tmp_path, 1)).weights("net")["w"]
    assert torch.equal(saved, torch.arange(1 << 20, dtype=torch.float32))
