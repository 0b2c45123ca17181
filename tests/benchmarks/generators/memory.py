"""Peak memory of a LlamaGen-L training step at vocabulary 83,521: whole logits against ours.

    python -m tests.benchmarks.generators.memory [--batch 8] [--layers 24] [--steps 1]
        [--only recompute plain-recompute]

Each way runs in a process of its own; the peak is that of its resident memory. "states" is what
weights, gradients and both Adam moments take whichever way is gone. bf16 autocast.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys

WAYS = {
    "whole logits": "plain",
    "ours": "ours",
    "ours, blocks recomputed": "recompute",
    "whole logits, blocks recomputed": "plain-recompute",
}


def step(way: str, layers: int, batch: int, steps: int) -> None:
    """Some steps; prints states and peak in MiB, then loss and gradient norm of each step."""
    import torch

    from ifsq_train.losses.token_cross_entropy import sum_of_group_means, token_cross_entropy
    from ifsq_train.models.llamagen import LlamaGen
    from ifsq_train.strategy.optimizers import create_state

    torch.manual_seed(0)
    model = LlamaGen(
        num_layers=layers, num_heads=16, dim=1024, codebook_sizes=[17**4], grid=(16, 16),
        token_dropout=0.0, residual_dropout=0.0, feed_forward_dropout=0.0,
    )  # fmt: skip
    torch.nn.init.normal_(model.output.weight, std=0.02)  # pyright: ignore
    if way.endswith("recompute"):
        from ifsq_train.strategy.activation_checkpointing import recompute_activations

        recompute_activations({"generator": model})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens, labels = torch.randint(17**4, (batch, 256)), torch.arange(batch)
    create_state(optimizer, model.parameters())  # there from the second step on anyway
    values = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            if way.startswith("plain"):
                loss = token_cross_entropy(model(tokens, labels).logits, tokens)
            else:
                output = model(tokens, labels, losses_only=True)
                loss = sum_of_group_means(output.group_losses)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        values.append((loss.item(), norm.item()))
        optimizer.step()
        optimizer.zero_grad()
    states = sum(p.numel() for p in model.parameters()) * 4 * 4 / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(states, peak, *(number for pair in values for number in pair))


def main() -> None:
    """Print a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--layers", type=int, default=24)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--only", nargs="+", choices=list(WAYS.values()), default=[*WAYS.values()])
    options.add_argument("--way", choices=list(WAYS.values()), help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.way is not None:
        step(args.way, args.layers, args.batch, args.steps)
        return
    for name, way in WAYS.items():
        if way not in args.only:
            continue
        command = [sys.executable, __file__, "--way", way, "--layers", str(args.layers),
                   "--batch", str(args.batch), "--steps", str(args.steps)]  # fmt: skip
        # Large tensors return to the system when freed: the peak is theirs, not the allocator's.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
        if done.returncode:
            print(f"{name:32} failed: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
            continue
        states, peak, *values = (float(value) for value in done.stdout.split())
        print(
            f"{name:32} states {states:7.0f} MiB  peak {peak:7.0f} MiB  above states"
            f" {peak - states:7.0f} MiB  losses and norms {values}",
            flush=True,
        )


if __name__ == "__main__":
    main()
