"""Everything that needs a GPU in one call: what must hold, then speed, MFU and peak memory.

    python -m tests.benchmarks.gpu.run --images FOLDER [--only steps zero] [--peak-tflops 989]
    python -m tests.benchmarks.gpu.run --tiny     # on a CPU: does it run at all

One JSON line per check or measurement; the exit code says whether all checks held. Sizes are the
paper's; `--tiny` shrinks all of them. MFU is what PyTorch's counter sees in an uncompiled step over
`--peak-tflops`, 989 for an H100 in bf16. FOLDER holds JPEGs to decode; without it some are made.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from tests.benchmarks.gpu.bench import Bench
from tests.benchmarks.gpu.checks import check_compile, check_tokens, check_zero
from tests.benchmarks.gpu.decode import measure_decode
from tests.benchmarks.gpu.steps import (
    measure_encode,
    measure_generators,
    measure_sampling,
    measure_tokenizer,
)

PARTS = {
    "tokens": check_tokens,
    "compile": check_compile,
    "zero": check_zero,
    "encode": measure_encode,
    "tokenizer": measure_tokenizer,
    "steps": measure_generators,
    "sampling": measure_sampling,
}


def main() -> None:
    """Run the parts asked for."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument(
        "--only", nargs="+", choices=[*PARTS, "decode"], default=[*PARTS, "decode"]
    )
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--images", type=Path, help="folder of JPEGs for the decoders")
    options.add_argument("--peak-tflops", type=float, default=989.0)
    options.add_argument("--rounds", type=int, default=10)
    args = options.parse_args()
    if not (args.tiny or torch.cuda.is_available()):
        sys.exit("no CUDA device is here; --tiny runs everything small on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(json.dumps({"device": name, "torch": torch.__version__, "tiny": args.tiny}), flush=True)
    rounds = 1 if args.tiny else args.rounds
    bench = Bench(device, args.tiny, args.peak_tflops, rounds, [])
    for part in args.only:
        if part == "decode":
            measure_decode(bench, args.images)
        else:
            PARTS[part](bench)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if bench.failures:
        sys.exit(f"did not hold: {', '.join(bench.failures)}")


if __name__ == "__main__":
    main()
