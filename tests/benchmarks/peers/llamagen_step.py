"""A training step of LlamaGen's own code, where it is at hand, against ours.

    python -m tests.benchmarks.peers.llamagen_step --peer FOLDER [--precision bf16|fp32]
        [--kernels exact|fast] [--layers 4] [--batch 4] [--codes 16384] [--rounds 3]

FOLDER is a checkout of github.com/FoundationVision/LlamaGen, which is not part of this repository.
Its model, fused AdamW, clipping and average run as its training script has them, on the CPU and
without its compiler; each side in a process of its own, so that neither has the other's kernels.
Processor seconds of one thread, the best of all rounds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ifsq_train.config import AutoregressiveTaskConfig
from ifsq_train.data.batch import Batch
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.tasks.autoregressive import AutoregressiveTask
from tests.benchmarks.generators.training import LLAMAGEN, our_step

DIM, HEADS, SIDE = 768, 12, 16


def main() -> None:
    """Print seconds of both sides and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--precision", choices=["bf16", "fp32"], default="bf16")
    parser.add_argument("--kernels", choices=["exact", "fast"], default="fast")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=["peer", "ours"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.side is not None:
        step = peer_step(args) if args.side == "peer" else our_own_step(args)
        print(json.dumps(best(step, args.rounds)))
        return
    taken = {}
    for side in ("peer", "ours"):
        command = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--side", side]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        taken[side] = json.loads(done.stdout.splitlines()[-1])
    ratio = taken["peer"] / taken["ours"]
    print(f"LlamaGen {args.precision}: peer {taken['peer']:.2f} s, ours {taken['ours']:.2f} s,"
          f" {ratio:.2f} x")  # fmt: skip


def best(step: Callable[[], object], rounds: int) -> float:
    """Least processor seconds, after a warm-up."""
    taken = []
    for turn in range(rounds + 1):
        began = time.process_time()
        step()
        if turn:
            taken.append(time.process_time() - began)
    return min(taken)


def example(args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and labels."""
    torch.manual_seed(0)
    return torch.randint(args.codes, (args.batch, SIDE * SIDE)), torch.arange(args.batch)


def peer_step(args: argparse.Namespace) -> Callable[[], object]:
    """The loop's body of its train_c2i.py."""
    sys.path.append(str(args.peer))
    code: Any = importlib.import_module("autoregressive.models.gpt")
    shape = code.ModelArgs(dim=DIM, n_layer=args.layers, n_head=HEADS, vocab_size=args.codes)
    model = code.Transformer(shape).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    tokens, labels = example(args)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            _, loss = model(cond_idx=labels, idx=tokens[:, :-1], targets=tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for name, parameter in model.named_parameters():
            average[name].mul_(0.9999).add_(parameter.data, alpha=1 - 0.9999)
        loss.item()

    return step


def our_own_step(args: argparse.Namespace) -> Callable[[], object]:
    """The task under the torch engine, as `ifsq train` runs it."""
    shape: dict[str, Any] = {"num_layers": args.layers, "num_heads": HEADS, "dim": DIM}
    model = LlamaGen(**shape, codebook_sizes=[args.codes], grid=(SIDE, SIDE))
    config = AutoregressiveTaskConfig.model_validate(
        {"kind": "autoregressive", "model": {"size": "custom", **shape}}
    )
    tokens, labels = example(args)
    batch = Batch(tokens, labels, np.arange(args.batch))
    task = AutoregressiveTask(config, model, None, None)
    return our_step(task, batch, args, LLAMAGEN)


if __name__ == "__main__":
    main()
