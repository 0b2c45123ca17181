"""The REPA loss, forward and backward, against the released loop over samples.

    python tests/benchmarks/generators/alignment.py [--batch 32] [--rounds 7]

256 positions of 768 features, as LlamaGen-L on f16 tokens with a DINOv2-B teacher has them.
"""

from __future__ import annotations

import argparse

import torch
from measure import head, measure, show
from reference_llamagen import reference_alignment

from ifsq_train.losses.alignment import alignment_loss


def main() -> None:
    """Print medians, ratio and how far the results are apart."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args()
    torch.manual_seed(0)
    ours = torch.randn(args.batch, 256, 768, requires_grad=True)
    target = torch.randn(args.batch, 256, 768)

    def run(loss) -> torch.Tensor:
        ours.grad = None
        loss([ours], [target]).backward()
        assert ours.grad is not None
        return ours.grad

    head()
    taken = measure(
        {"released": lambda: run(reference_alignment), "ours": lambda: run(alignment_loss)},
        args.rounds,
    )
    show(f"REPA loss, batch {args.batch}", taken)
    apart = (run(reference_alignment) - run(alignment_loss)).abs().max()
    print(f"gradients differ by at most {float(apart):.1e}")


if __name__ == "__main__":
    main()
