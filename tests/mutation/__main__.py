"""Run a seeded sample of a module's mutants and print those that no test noticed."""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.mutation.targets import tests_of
from tests.support.repository import REPOSITORY, SHARED

CONFIG = """[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = {command}

[cosmic-ray.distributor]
name = "local"
"""


def copy_checkout(folder: Path) -> Path:
    """Tracked files only; the reference data stays beside it. Mutants are written in place."""
    target = folder / "checkout"
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    for name in filter(None, names.stdout.split("\0")):
        if (REPOSITORY / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, target / name)
    if SHARED.is_dir():
        (folder / "shared").symlink_to(SHARED)
    return target


def run(command: list[str], checkout: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=checkout, env=environment, check=True)


def annotated_lines(path: Path) -> set[tuple[int, int]]:
    """(line, column) of everything inside annotations, which are never evaluated here."""
    places = set()
    for node in ast.walk(ast.parse(path.read_text())):
        for name in ("annotation", "returns"):
            part = getattr(node, name, None)
            if isinstance(part, ast.AST):
                places |= {
                    (inner.lineno, inner.col_offset)
                    for inner in ast.walk(part)
                    if isinstance(inner, ast.expr)
                }
    return places


def keep_sample(session: Path, count: int, seed: int, skipped: set[tuple[int, int]]) -> int:
    """Leave that many of the session's mutants; returns how many there were."""
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(str(session), WorkDB.Mode.open) as found:
        items = [
            item
            for item in sorted(found.work_items, key=lambda item: str(item.mutations))
            if not any(part.start_pos in skipped for part in item.mutations)
        ]
    session.unlink()
    chosen = random.Random(seed).sample(items, min(count, len(items)))
    with use_db(str(session), WorkDB.Mode.create) as kept:
        kept.add_work_items(chosen)
    return len(items)


def report(session: Path, total: int) -> int:
    """Print the outcome; returns the number of survivors."""
    from cosmic_ray.work_db import WorkDB, use_db

    with use_db(str(session), WorkDB.Mode.open) as found:
        outcomes = dict(found.results)
        items = {str(item.job_id): item for item in found.work_items}
    survivors = []
    for job, result in outcomes.items():
        if result.test_outcome is not None and result.test_outcome.value == "survived":
            (mutation,) = items[str(job)].mutations
            line, _ = mutation.start_pos
            survivors.append(f"{mutation.module_path}:{line} {mutation.operator_name}")
            print(result.diff or survivors[-1])
    caught = len(outcomes) - len(survivors)
    print(f"{caught} of {len(outcomes)} mutants caught (of {total} possible)")
    print(*survivors, sep="\n")
    return len(survivors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", help="path from the checkout, such as ifsq_train/losses/...py")
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one mutant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ifsq-mutation-") as temporary:
        folder = Path(temporary)
        checkout = copy_checkout(folder)
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        command += ["-m", "not slow", *tests_of(options.module)]
        run(command, checkout)  # without a fault they pass
        config, session = folder / "config.toml", folder / "session.sqlite"
        config.write_text(
            CONFIG.format(
                module=options.module,
                timeout=options.timeout,
                command=json.dumps(" ".join(f"'{part}'" for part in command)),
            )
        )
        tool = [sys.executable, "-m", "cosmic_ray.cli"]
        run([*tool, "init", str(config), str(session)], checkout)
        total = keep_sample(
            session, options.sample, options.seed, annotated_lines(checkout / options.module)
        )
        run([*tool, "exec", str(config), str(session)], checkout)
        report(session, total)


if __name__ == "__main__":
    main()
