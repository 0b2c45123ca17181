"""Encoding images to tokens, f16 of the paper, against the released encoder written plainly.

    python -m tests.benchmarks.models.encode [--size 128] [--batch 2] [--rounds 7]

Same weights, same images, fp32, no gradients. Times are processor seconds of this process: on a
machine that others use too they say more than the clock.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from statistics import median

import torch

from ifsq_train.models.autoencoder import Tokenizer
from ifsq_train.models.inference import channels_last, optimize_for_inference
from ifsq_train.models.quantizers import FSQ
from tests.benchmarks.models.reference_tokenizer import ReferenceEncoder


def main() -> None:
    """Print medians, ratio, and how many tokens differ."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--size", type=int, default=128)
    options.add_argument("--batch", type=int, default=2)
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    torch.manual_seed(0)
    tokenizer = Tokenizer(FSQ([17] * 4)).eval()
    images = torch.rand(args.batch, 3, args.size, args.size) * 2 - 1
    reference = ReferenceEncoder(copy.deepcopy(tokenizer))
    optimize_for_inference(tokenizer)

    def released() -> torch.Tensor:
        with torch.no_grad():
            return reference(images)[1]

    def ours() -> torch.Tensor:
        with torch.inference_mode():
            return tokenizer.encode(channels_last(images)).indices

    differing = int((released() != ours()).sum())
    taken = measure({"released": released, "ours": ours}, args.rounds)
    slow, fast = taken["released"], taken["ours"]
    print(f"torch {torch.__version__}, cpu, {torch.get_num_threads()} threads")
    print(f"{args.batch} images of {args.size} px: {slow:.3f} s {fast:.3f} s {slow / fast:.2f} x")
    print(f"tokens that differ: {differing} of {args.batch * (args.size // 16) ** 2}")


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median processor seconds of each, taken in turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began = time.process_time()
            run()
            taken[name].append(time.process_time() - began)
    return {name: median(times) for name, times in taken.items()}


if __name__ == "__main__":
    main()
