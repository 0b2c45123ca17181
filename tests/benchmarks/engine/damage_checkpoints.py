"""Damage every file of a checkpoint in every way; is it always seen, and the one before used?

    python -m tests.benchmarks.engine.damage_checkpoints [--truncations 50] [--flips 200]

Every file is cut at random lengths, deleted, swapped with its namesake of another step, and has
single random bits flipped; after each the newest intact checkpoint must be the earlier one.
"""

from __future__ import annotations

import argparse
import logging
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

from ifsq_train.checkpoint.format import step_folder
from ifsq_train.checkpoint.reader import newest_checkpoint
from tests.unit.ifsq_train.checkpoint.test_checkpoint import damage, write

OLDER, NEWER = 5, 6


def main() -> None:
    """Damage, look, repair; print how often each kind of damage was seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--truncations", type=int, default=50)
    parser.add_argument("--flips", type=int, default=200)
    options = parser.parse_args()
    logging.disable()
    rng = random.Random(0)
    began = time.monotonic()
    tried, unseen = Counter[str](), Counter[str]()
    rounds = {"truncate": options.truncations, "delete": 1, "swap": 1, "flip": options.flips}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder, OLDER)
        write(folder, NEWER)
        files = sorted(step_folder(folder, NEWER).iterdir())
        for file in files:
            original = file.read_bytes()
            other = step_folder(folder, OLDER) / file.name
            for how, count in rounds.items():
                if how == "swap" and other.read_bytes() == original:
                    continue  # equal files, nothing is damaged
                for _ in range(count):
                    damage(file, how, rng, other)
                    found = newest_checkpoint(folder)
                    tried[how] += 1
                    if found is None or found.step != OLDER:
                        unseen[f"{how} of {file.name}"] += 1
                    file.write_bytes(original)
        assert newest_checkpoint(folder) is not None
    print(f"{len(files)} files: {dict(tried)} in {time.monotonic() - began:.0f} s")
    print(f"unseen: {dict(unseen) or 'none'}")


if __name__ == "__main__":
    main()
