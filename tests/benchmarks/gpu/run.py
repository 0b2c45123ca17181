"""Ten minutes on a GPU machine for the most truth: one command, partial results always written.

    python tests/benchmarks/gpu/run.py [--minutes 10] [--only NAME ...] [--images FOLDER]
        [--wheels FOLDER] [--output FOLDER] [--peak-tflops 989]
    python tests/benchmarks/gpu/run.py --tiny     # on a CPU: does it run at all

Every part is a process of its own with a budget, the most valuable first: one that fails, hangs,
runs out of memory or misses a package loses only itself, and says why. After each part
`results.json` and `results.md` are written anew. `--wheels` names what `prepare.sh` collected, for
machines without a network; it is put in front of the path, not installed. The exit code is 1 if a
check did not hold or a part failed. Sizes are the paper's; `--tiny` shrinks all of them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: as `--only` takes it.
        module: file of this folder that holds it; imported in the part's own process.
        function: takes a `Bench`.
        seconds: after so many it is ended.
    """

    name: str
    module: str
    function: str
    seconds: float = 90.0


PARTS = [
    Part("environment", "environment", "describe_machine", 30),
    Part("llamagen", "steps", "measure_llamagen", 120),
    Part("sampling", "steps", "measure_sampling", 150),
    Part("greedy", "checks", "check_greedy", 90),
    Part("dit", "steps", "measure_dit", 120),
    Part("tokenizer", "steps", "measure_tokenizer"),
    Part("encode", "steps", "measure_encode"),
    Part("tokens", "checks", "check_tokens", 60),
    Part("precision", "checks", "check_precision", 60),
    Part("repeat", "checks", "check_repeat", 60),
    Part("compile", "checks", "check_compile"),
    Part("zero", "checks", "check_zero"),
    Part("kernels", "kernels", "top_kernels"),
    Part("attention", "kernels", "attention_backends", 40),
    Part("save", "saving", "measure_save", 60),
    Part("train", "saving", "real_training", 120),
    Part("decode", "decode", "measure_decode"),
]


def main() -> None:
    """Run the parts asked for."""
    options = argparse.ArgumentParser(description=__doc__)
    names = [part.name for part in PARTS]
    options.add_argument("--only", nargs="+", choices=names, default=names)
    options.add_argument("--tiny", action="store_true")
    options.add_argument("--minutes", type=float, default=10.0)
    options.add_argument("--images", type=Path, help="folder of JPEGs for the decoders")
    options.add_argument("--wheels", type=Path, help="folder made by prepare.sh")
    options.add_argument("--output", type=Path, default=Path("gpu-results"))
    options.add_argument("--peak-tflops", type=float, default=989.0)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--part", choices=names, help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.part is not None:
        run_part(next(part for part in PARTS if part.name == args.part), args)
        return
    args.output.mkdir(parents=True, exist_ok=True)
    ends, lines = time.monotonic() + 60 * args.minutes, []
    for part in PARTS:
        if part.name not in args.only:
            continue
        left = ends - time.monotonic()
        if left < 5:
            lines.append({"part": part.name, "what": part.name, "error": "no time was left"})
        else:
            lines += supervise(part, min(part.seconds * (3 if args.tiny else 1), left))
        write_results(args.output, lines)
    failed = [line for line in lines if "error" in line or line.get("holds") is False]
    if failed:
        sys.exit("failed: " + ", ".join(str(line["what"]) for line in failed))


def run_part(part: Part, args: argparse.Namespace) -> None:
    """In the part's own process: import what it needs and run it."""
    paths = [HERE.parents[2]]
    if args.wheels is not None:
        paths = [*paths, args.wheels]
    sys.path[:0] = [str(path) for path in paths]
    import torch

    from tests.benchmarks.gpu.bench import Bench

    if not (args.tiny or torch.cuda.is_available()):
        sys.exit("no CUDA device is here; --tiny runs everything small on the CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rounds = 1 if args.tiny else args.rounds
    bench = Bench(device, args.tiny, args.peak_tflops, rounds, [], args.images)
    getattr(importlib.import_module(f"tests.benchmarks.gpu.{part.module}"), part.function)(bench)


def supervise(part: Part, seconds: float) -> list[dict[str, Any]]:
    """What a part printed, and an error of it; ends it when its time is over."""
    began = time.monotonic()
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part.name]
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    error = None
    try:
        printed, complaints = child.communicate(timeout=seconds)
        if child.returncode:
            last = [line for line in complaints.strip().splitlines() if line.strip()]
            error = last[-1] if last else f"exit code {child.returncode}"
    except subprocess.TimeoutExpired:
        child.kill()
        printed, _ = child.communicate()
        error = f"not done after {seconds:.0f} s"
    lines = [json.loads(line) for line in printed.splitlines() if line.startswith('{"what"')]
    if error is not None:
        lines.append({"what": part.name, "error": error})
    taken = round(time.monotonic() - began, 1)
    lines.append({"what": f"{part.name}: seconds taken", "seconds": taken})
    found = [{"part": part.name, **line} for line in lines]
    for line in found:
        print(json.dumps(line), flush=True)
    return found


def write_results(folder: Path, lines: list[dict[str, Any]]) -> None:
    """All lines so far as JSON and as a Markdown table, each whole at any time."""
    rows = ["| part | what | result |", "|---|---|---|"]
    for line in lines:
        facts = {k: v for k, v in line.items() if k not in ("part", "what")}
        text = ", ".join(f"{key} {value}" for key, value in facts.items()).replace("|", "/")
        rows.append(f"| {line['part']} | {str(line['what']).replace('|', '/')} | {text} |")
    for name, text in {
        "results.json": json.dumps(lines, indent=1),
        "results.md": "\n".join(rows) + "\n",
    }.items():
        temporary = folder / f".{name}"
        temporary.write_text(text)
        temporary.replace(folder / name)


if __name__ == "__main__":
    main()
