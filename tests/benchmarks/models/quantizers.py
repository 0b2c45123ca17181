"""Forward and backward of the bottlenecks against the released algorithms written plainly.

    python -m tests.benchmarks.models.quantizers [--device cuda]

Training mode, as in a training step that is not logged: running moments are kept by both.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ifsq_train.models.quantizers import FSQ, LFQ, VQ, Quantizer
from tests.benchmarks.models.reference_quantizer import ReferenceFsq, ReferenceLfq, ReferenceVq
from tests.benchmarks.models.side_by_side import compare


def reference_step(module: nn.Module, latents: Tensor, weights: Tensor) -> Callable[[], None]:
    """Forward and backward of codes and losses."""

    def step() -> None:
        codes, _, *losses = module(latents)
        torch.autograd.backward([codes, *losses], [weights, *[None] * len(losses)])
        latents.grad = None

    return step


def our_step(module: Quantizer, latents: Tensor, weights: Tensor) -> Callable[[], None]:
    """The same with our quantizers."""
    module.measure_use = False

    def step() -> None:
        output = module(latents)
        losses = list(output.losses.values())
        torch.autograd.backward([output.latents, *losses], [weights, *[None] * len(losses)])
        latents.grad = None

    return step


def main() -> None:
    """Print one line per bottleneck and size."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--device", default="cpu")
    device = options.parse_args().device
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    print(f"{'bottleneck':44} {'released':>13} {'ours':>13}")
    cases: list[tuple[str, tuple[int, ...], nn.Module, Quantizer, int]] = [
        ("iFSQ 17^4, f16, batch 16", (16, 4, 16, 16), *fsq([17] * 4), 100),
        ("iFSQ 17^4, f16, batch 64", (64, 4, 16, 16), *fsq([17] * 4), 60),
        ("iFSQ 17^4, f8, batch 16", (16, 4, 32, 32), *fsq([17] * 4), 60),
        ("iFSQ 5^8 in two groups, f8, batch 16", (16, 8, 32, 32), *fsq([5] * 8, [4, 4]), 40),
        ("VQ 16384 x 4, f16, batch 4", (4, 4, 16, 16), ReferenceVq(16384, 4), VQ(16384, 4), 3),
        ("VQ 16384 x 8, f16, batch 4", (4, 8, 16, 16), ReferenceVq(16384, 8), VQ(16384, 8), 3),
        ("LFQ 14 bits, f16, batch 2", (2, 14, 16, 16), ReferenceLfq(14), LFQ(14), 3),
    ]
    for title, shape, theirs, ours, rounds in cases:
        latents = torch.randn(shape, device=device).requires_grad_()
        weights = torch.randn(shape, device=device)
        theirs, ours = theirs.to(device).train(), ours.to(device).train()
        compare(
            title,
            reference_step(theirs, latents, weights),
            our_step(ours, latents, weights),
            rounds,
        )


def fsq(levels: list[int], groups: list[int] | None = None) -> tuple[ReferenceFsq, FSQ]:
    """Both iFSQ modules of the same levels and groups."""
    return ReferenceFsq(levels, 1.6, groups), FSQ(levels, groups=groups, track_statistics=True)


if __name__ == "__main__":
    main()
