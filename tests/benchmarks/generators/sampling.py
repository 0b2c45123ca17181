"""Drawing 64 images' tokens against the released sampler written plainly.

    python -m tests.benchmarks.generators.sampling [--images 64] [--layers 12] [--rounds 1]
        [--only single|factorized]

LlamaGen of base width on 16 x 16 tokens with guidance 2.0: one codebook of 16,384 (the released
VQ) and two of 289 (iFSQ 17^4 in two groups). The released sampler decodes in fp32 with unfused
attention; beside it stands the same with whatever kernel torch chooses. Ours decodes in fp32 and,
as the sampling recipe's `precision: bf16` does, with bf16 weights. Same weights; the draws differ.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Any

import torch

from ifsq_train.models.inference import optimize_for_inference
from ifsq_train.models.llamagen import LlamaGen
from ifsq_train.sampling.autoregressive import SamplingConfig, sample_tokens
from tests.benchmarks.generators.measure import head, measure
from tests.benchmarks.generators.reference_llamagen import ReferenceLlamaGen, reference_sample


def compare(name: str, codebooks: list[int], args: argparse.Namespace) -> None:
    """One line per way."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {"num_layers": args.layers, "num_heads": 12, "dim": 768}
    model = LlamaGen(**shape, codebook_sizes=codebooks, grid=(16, 16))
    with torch.no_grad():
        for parameter in model.output.parameters():
            parameter.normal_(std=0.02)
    other = ReferenceLlamaGen(
        **shape, codebook_sizes=codebooks, grid=(16, 16), num_classes=1000, dropout=0.1
    )
    other.load_state_dict(model.state_dict())
    model.eval().requires_grad_(False)
    other.eval()
    half = copy.deepcopy(model)
    for parameter in half.parameters():
        parameter.data = parameter.data.bfloat16()
    for network in (model, half):
        optimize_for_inference(network)  # as `ifsq sample` does
    labels, seeds = torch.arange(args.images), range(args.images)
    config = SamplingConfig(cfg_scale=2.0)
    runs: dict[str, Callable[[], object]] = {
        "released": lambda: reference_sample(other, labels, 2.0),
        "any kernel": lambda: reference_sample(other, labels, 2.0, any_kernel=True),
        "ours, fp32": lambda: sample_tokens(model, labels, seeds, config),
        "ours, bf16": lambda: sample_tokens(half, labels, seeds, config),
    }
    taken = measure(runs, args.rounds, warm_up=False)
    slow = taken["released"]
    for way, seconds in taken.items():
        print(f"{name:12} {way:12} {seconds:9.2f} s   {slow / seconds:5.2f} x", flush=True)


def main() -> None:
    """Print processor seconds and ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=64)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--only", choices=["single", "factorized"])
    args = options.parse_args()
    head()
    print(f"{args.images} images, {args.layers} layers of width 768")
    for name, codebooks in {"single": [16384], "factorized": [289, 289]}.items():
        if args.only in (None, name):
            compare(name, codebooks, args)


if __name__ == "__main__":
    main()
