"""What the ranks of a distributed test run; each function's result can be written as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ifsq_train.assembly.strategy import build_strategy
from ifsq_train.checkpoint.reader import newest_checkpoint
from ifsq_train.checkpoint.retention import Retention
from ifsq_train.checkpoint.writer import CheckpointWriter
from ifsq_train.config import EvaluateConfig, OptimConfig, StrategyConfig, TrainConfig
from ifsq_train.config.load import validate_recipe
from ifsq_train.distributed.collectives import mean_over_ranks
from ifsq_train.distributed.context import TorchrunContext
from ifsq_train.evaluation.evaluate import evaluate
from ifsq_train.strategy.base import Strategy
from ifsq_train.train import run
from ifsq_train.training.ema import WeightAverage
from ifsq_train.training.saved_state import collect_state, load_network

OPTIM = {
    "generator": OptimConfig(lr=1e-2, warmup_steps=3, schedule="cosine", weight_decay=0.1),
    "critic": OptimConfig(lr=5e-3, max_grad_norm=None),
}


def toy_networks() -> dict[str, nn.Module]:
    """Two small networks whose sizes divide by nothing convenient."""
    torch.manual_seed(0)
    return {
        "generator": nn.Sequential(nn.Linear(7, 13), nn.GELU(), nn.Linear(13, 5)),
        "critic": nn.Sequential(nn.Linear(5, 11), nn.GELU(), nn.Linear(11, 1)),
    }


def gan_step(strategy: Strategy, step: int, rank: int, world_size: int) -> float:
    """One update of both networks on 8 samples in 2 micro-batches; mean generator loss."""
    generator = torch.Generator().manual_seed(step)
    inputs = torch.randn(8, 7, generator=generator).chunk(world_size)[rank]
    targets = torch.randn(8, 5, generator=generator).chunk(world_size)[rank]
    parts = list(zip(inputs.chunk(2), targets.chunk(2), strict=True))
    total = torch.zeros(1)
    for index, (x, y) in enumerate(parts):
        with strategy.updating("generator", last_micro_batch=index == 1) as models:
            output = models["generator"](x)
            loss = ((output - y) ** 2).mean() - 0.1 * models["critic"](output).mean()
            strategy.backward("generator", loss / 2)
            total += loss.detach() / 2
    strategy.step("generator")
    for index, (x, y) in enumerate(parts):
        with strategy.updating("critic", last_micro_batch=index == 1) as models:
            with torch.no_grad():
                output = models["generator"](x)
            # Two calls of the engine, as the discriminator's batch norms need.
            loss = models["critic"](output).mean() - models["critic"](y).mean()
            strategy.backward("critic", loss / 2)
    strategy.step("critic")
    return float(mean_over_ranks(total))


def train_toy(
    kind: str, stage: int, folder: str, first: int, last: int, save_at: int | None
) -> dict[str, Any]:
    """Train steps [first, last), resuming if the folder has a checkpoint."""
    context = TorchrunContext()
    zero: Any = stage
    strategy = build_strategy(
        StrategyConfig(kind="torch" if kind == "torch" else "deepspeed", zero_stage=zero), context
    )
    strategy.prepare(toy_networks(), OPTIM, 20)
    average = WeightAverage(strategy, "generator", 0.9)
    checkpoint = newest_checkpoint(Path(folder))
    if checkpoint is not None:
        for name, steps in checkpoint.header["optimizer_steps"].items():
            load_network(checkpoint, strategy, name, steps)
        average.load(checkpoint)
    writer = CheckpointWriter(
        Path(folder),
        rank=context.rank,
        world_size=context.world_size,
        attempt="a",
        retention=Retention(1),
    )
    losses = []
    for step in range(first, last):
        losses.append(gan_step(strategy, step, context.rank, context.world_size))
        average.update()
        if step + 1 == save_at:
            names = ["generator", "critic"]
            pieces, buffers = collect_state(strategy, names, {"generator": average})
            steps = {name: strategy.optimizer_steps(name) for name in names}
            writer.save(step + 1, pieces, buffers, {"optimizer_steps": steps})
    writer.close()
    mine = sum(float(a.double().sum()) for _, a in average.pieces())
    sums = torch.tensor([mine])
    if dist.get_world_size() > 1:
        dist.all_reduce(sums)
    return {"losses": losses, "average": float(sums), "engine": strategy.describe()}


def run_traces(
    golden_folder: str, traces: list[str], engines: list[dict[str, Any]], output: str
) -> dict[str, Any]:
    """Records by trace and engine; see ``trace_runs``."""
    from tests.support.trace_runs import run_trace

    return {
        trace: [
            run_trace(golden_folder, trace, f"{output}/{trace}-{index}", engine)
            for index, engine in enumerate(engines)
        ]
        for trace in traces
    }


def run_smooth(engines: list[dict[str, Any]], output: str) -> list[Any]:
    """Records by engine; see ``trace_runs``."""
    from tests.support.trace_runs import run_smooth

    return [run_smooth(f"{output}/{index}", engine) for index, engine in enumerate(engines)]


def save_cells(**arguments: Any) -> dict[str, Any]:
    """See ``matrix_runs``."""
    from tests.support.matrix_runs import save_cells

    return save_cells(**arguments)


def load_cells(**arguments: Any) -> dict[str, Any]:
    """See ``matrix_runs``."""
    from tests.support.matrix_runs import load_cells

    return load_cells(**arguments)


def train_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Train a whole recipe; the run's result."""
    config = validate_recipe(values, "test")
    assert isinstance(config, TrainConfig)
    return run(config, TorchrunContext())


def evaluate_recipe(values: dict[str, Any]) -> dict[str, Any]:
    """Measure what a recipe names; the result."""
    config = validate_recipe(values, "test")
    assert isinstance(config, EvaluateConfig)
    return evaluate(config, context=TorchrunContext())


def exact_resume(data: str, output: str, strategy: dict[str, Any]) -> dict[str, Any]:
    """See exact_resume.run_and_resume."""
    from tests.support.exact_resume import run_and_resume

    return run_and_resume(data, Path(output), strategy, TorchrunContext())
