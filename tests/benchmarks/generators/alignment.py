"""The REPA loss, forward and backward, against the released loop over samples.

    python -m tests.benchmarks.generators.alignment [--batch 32] [--rounds 7]

256 positions of 768 features, as LlamaGen-L on f16 tokens with a DINOv2-B teacher has them; ours
with torch's kernels, and in one kernel as with `strategy.compile`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

from ifsq_train.losses.alignment import alignment_loss
from tests.benchmarks.generators.measure import head, measure, show
from tests.benchmarks.generators.reference_llamagen import reference_alignment

WEIGHT = 2.0


def main() -> None:
    """Print medians, ratio and how far the results are apart."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    torch.manual_seed(0)
    ours = torch.randn(args.batch, 256, 768, requires_grad=True)
    target = torch.randn(args.batch, 256, 768)

    released: Any = reference_alignment

    def run(loss: Any, **settings: Any) -> torch.Tensor:
        ours.grad = None
        (WEIGHT * loss([ours], [target], **settings)).backward()
        assert ours.grad is not None
        return ours.grad

    head()
    runs: dict[str, Callable[[], object]] = {
        "released": lambda: run(released),
        "ours": lambda: run(alignment_loss, weight=WEIGHT),
        "compiled": lambda: run(alignment_loss, weight=WEIGHT, way="compiled"),
    }
    taken = measure(runs, args.rounds)
    for name in ("ours", "compiled"):
        show(f"REPA loss, batch {args.batch}, {name}", taken | {"ours": taken[name]})
    for way in ("fused", "compiled"):
        apart = (run(released) - run(alignment_loss, weight=WEIGHT, way=way)).abs().max()
        print(f"{way}: gradients differ by at most {float(apart):.1e}")


if __name__ == "__main__":
    main()
