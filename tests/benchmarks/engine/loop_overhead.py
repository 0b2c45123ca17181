"""The loop against a hand-written minimal DeepSpeed loop of the same model and batches.

    python -m tests.benchmarks.engine.loop_overhead [--steps 40] [--dim 256] [--layers 6]

Both train the same LlamaGen on the same recorded tokens with ZeRO stage 1 in one process, in turns
(A B A B ...), and the median step time of each is printed. Logging is at every tenth step, as by
default, and the dry run and checkpoints are outside the timed steps.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from ifsq_train import train
from ifsq_train.distributed.context import InProcessContext
from ifsq_train.distributed.interruption import Interruption
from ifsq_train.losses.token_cross_entropy import token_cross_entropy
from ifsq_train.metrics.step_meter import StepMeter
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from tests.support.trace_runs import RecordedData, recipe

GRID, VOCABULARY, BATCH = 8, 1024, 8


Moment = tuple[float, float]
WARM_UP = 4


def now() -> Moment:
    """Wall clock, and CPU time of all threads of this process: other load does not move that."""
    return time.perf_counter(), time.process_time()


def steps_between(moments: list[Moment]) -> Moment:
    """Medians of a step, without the first few."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(moments)][WARM_UP:]
    return statistics.median(wall for wall, _ in steps), statistics.median(cpu for _, cpu in steps)


class TimedContext(InProcessContext):
    """Notes when each step ends: the loop asks every step whether to leave."""

    def __init__(self) -> None:
        super().__init__(device=torch.device("cpu"))
        self.moments: list[Moment] = []
        self.worked: list[float] = []

    def interruption(self) -> Interruption:
        """Never."""
        self.moments.append(now())
        self.worked.append(WORKED["compute"] + WORKED["optimizer"])
        return Interruption.NONE

    def overhead(self) -> float:
        """Part of the wall time that is neither forward and backward nor the optimizer."""
        wall = self.moments[-1][0] - self.moments[WARM_UP][0]
        return 1 - (self.worked[-1] - self.worked[WARM_UP]) / wall


WORKED: dict[str, float] = dict.fromkeys(("data", "compute", "optimizer", "checkpoint"), 0.0)
"""Seconds in each phase of the loop, so far."""
_phase = StepMeter.phase


@contextmanager
def counted_phase(meter: StepMeter, name: str) -> Iterator[None]:
    """The loop's own phases, also added up here."""
    began = time.perf_counter()
    with _phase(meter, name):
        yield
    WORKED[name] = WORKED.get(name, 0.0) + time.perf_counter() - began


def build(options: argparse.Namespace) -> LlamaGen:
    """The same weights every time."""
    torch.manual_seed(0)
    return LlamaGen(
        num_layers=options.layers,
        num_heads=4,
        dim=options.dim,
        codebook_sizes=[VOCABULARY],
        grid=(GRID, GRID),
        num_classes=10,
        token_dropout=0.0,
        residual_dropout=0.0,
        feed_forward_dropout=0.0,
    )


def batches(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Recorded tokens [S, B, T] and labels [S, B]."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (steps, BATCH, GRID * GRID), generator=generator)
    return tokens, torch.randint(10, (steps, BATCH), generator=generator)


def run_ours(options: argparse.Namespace) -> tuple[Moment, float]:
    """Wall and CPU seconds of a step in the project's loop, and the loop's own part of the time."""
    model = build(options)
    shape = {"size": "custom", "num_layers": 2, "num_heads": 2, "dim": 64, "num_classes": 10}
    tokens, labels = batches(options.steps)
    with tempfile.TemporaryDirectory() as folder:
        config = recipe(
            folder,
            {"kind": "deepspeed", "zero_stage": 1},
            steps=options.steps,
            data={"kind": "tokens"},
            batch=BATCH,
            task={"kind": "autoregressive", "model": shape | {"class_dropout": 0.0}},
            optim={"generator": {"lr": 1e-3}},
            ema_decay=None,
            checkpoint={"every_steps": 10**6},
        ).model_copy(update={"log_every_steps": 10})
        settings: Any = config.task
        task = AutoregressiveTask(settings, model, None, None)
        replaced: Any = train
        replaced.open_train_data = lambda *_args, **_kwargs: RecordedData(tokens, labels)
        replaced.build_task = lambda *_args: task
        context = TimedContext()
        train.run(config, context)
    return steps_between(context.moments), context.overhead()


def run_minimal(options: argparse.Namespace) -> Moment:
    """Wall and CPU seconds of a step in the fewest lines that train the same with DeepSpeed."""
    import deepspeed

    model = build(options)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    settings = {
        "train_micro_batch_size_per_gpu": BATCH,
        "gradient_clipping": 1.0,
        "zero_optimization": {"stage": 1},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=settings, dist_init_required=False
    )
    tokens, labels = batches(options.steps)
    nobody = torch.zeros(BATCH, dtype=torch.bool)
    moments: list[Moment] = []
    for step in range(options.steps):
        output = engine(tokens[step], labels[step], drop_labels=nobody)
        engine.backward(token_cross_entropy(output.logits, tokens[step]))
        engine.step()
        moments.append(now())
    return steps_between(moments)


def main() -> None:
    """Measure in turns and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    StepMeter.phase = counted_phase  # type: ignore[method-assign]
    ours, minimal, overheads = [], [], []
    for _ in range(options.rounds):
        moment, overhead = run_ours(options)
        ours.append(moment)
        overheads.append(overhead)
        minimal.append(run_minimal(options))
    count = sum(p.numel() for p in build(options).parameters())
    print(f"{count / 1e6:.1f} M parameters, batch {BATCH}, {GRID * GRID} tokens")
    for kind, index in (("wall", 0), ("CPU", 1)):
        here = statistics.median(step[index] for step in ours) * 1e3
        least = statistics.median(step[index] for step in minimal) * 1e3
        ratios = [round(a[index] / b[index], 4) for a, b in zip(ours, minimal, strict=True)]
        print(f"{kind:4} ms per step: this loop {here:8.2f}, minimal loop {least:8.2f}; {ratios}")
    parts = ", ".join(f"{overhead:.2%}" for overhead in overheads)
    print(f"neither compute nor optimizer, part of this loop's wall time: {parts}")


if __name__ == "__main__":
    main()
