"""Save at every (ZeRO stage, world size), load at every other: how far do the losses differ?

    python -m tests.benchmarks.engine.resume_matrix [--worlds 1,2,4] [--stages 0,1,2,3]

Prints, for every pair of world sizes, the largest relative difference of the next ten losses from
those of the run that went on without stopping, over all pairs of stages; and whether all cells
that are loaded where they were saved are equal bit by bit.
"""

from __future__ import annotations

import argparse
import tempfile
import time

from tests.support.resume_cells import measure


def main() -> None:
    """Run the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", default="1,2,4")
    parser.add_argument("--stages", default="0,1,2,3")
    options = parser.parse_args()
    worlds = [int(world) for world in options.worlds.split(",")]
    stages = [int(stage) for stage in options.stages.split(",")]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(folder, worlds, stages)
    for line in report.lines():
        print(line)
    print(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
