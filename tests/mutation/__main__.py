"""Put a seeded sample of mutants into modules and print those that no test noticed."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tests.mutation.equivalents import accepted
from tests.mutation.known_faults import CAUGHT_BY, FAULTS, Fault
from tests.mutation.live_code import changed_functions
from tests.mutation.mutants import Mutant, modules_below, sample
from tests.mutation.rooms import NOT_ASKED, ROOMS, RUN_ELSEWHERE, SUITE, mirror_of
from tests.support.repository import REPOSITORY, SHARED

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
QUICK = "not slow and not compiles and not gpu"
START_SECONDS = 15.0


def copy_checkout(folder: Path) -> Path:
    """Tracked files only; the reference data stays beside it. Some mutants are written in place."""
    target = folder / "checkout"
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
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
    subprocess.run(command, cwd=checkout, env=environment, check=False)


def measure_reach(checkout: Path, tests: list[str], marks: str, output: Path) -> None:
    """Run the tests without a fault; those that fail are asked about no mutant."""
    ignored = [f"--ignore={path}" for path in NOT_ASKED]
    reach = ["-p", "tests.mutation.reach", "--reach", str(output)]
    run([*PYTEST, "-m", marks, "--tb=line", *reach, *ignored, *tests], checkout)


def entry_of(mutant: Mutant, tests: list[str], limit: float) -> dict[str, Any]:
    """What a plan says of a mutant; see `forked`."""
    facts = {name: getattr(mutant, name) for name in ("name", "module", "line", "before", "after")}
    return {**facts, "source": mutant.source, "tests": tests, "limit": limit}


def plan_known() -> list[tuple[bool, dict[str, Any]]]:
    """As `Planner.plan` for every known fault: each is for one test."""
    planned = []
    for fault in FAULTS:
        if (mutant := _of_fault(fault)) is not None:
            path = REPOSITORY / mutant.module
            changed = changed_functions(str(path), path.read_text(), mutant.source)
            tests = [f"tests/unit/{CAUGHT_BY[fault.what]}"]
            planned.append((changed is not None, entry_of(mutant, tests, 600.0)))
    return planned


class Planner:
    """Chooses the tests of a mutant: those that reach it, of its own folder first, quick first."""

    def __init__(self, reach: dict[str, Any], budget_seconds: float) -> None:
        self._calls: dict[str, list[str]] = reach["calls"]
        self._seconds: dict[str, float] = reach["seconds"]
        self._budget = budget_seconds

    def plan(self, mutant: Mutant) -> tuple[bool, dict[str, Any]]:
        """(whether a living process can take it, entry for a plan)."""
        path = REPOSITORY / mutant.module
        changed = changed_functions(str(path), path.read_text(), mutant.source)
        live = changed is not None
        tests = self._reaching(mutant.module, changed[0]) if changed is not None else []
        if not tests:
            live, tests = False, self._of_module(mutant.module)
        chosen, total = self._within_budget(mutant.module, tests)
        return live, entry_of(mutant, chosen, START_SECONDS + 20.0 + 8 * total)

    def _reaching(self, module: str, names: list[str]) -> list[str]:
        for name in names:
            if found := self._calls.get(f"{module}:{name}"):
                return found
        return []

    def _of_module(self, module: str) -> list[str]:
        elsewhere = [
            t for prefix, tests in RUN_ELSEWHERE.items() if module.startswith(prefix) for t in tests
        ]
        found = {
            t for key, tests in self._calls.items() if key.startswith(f"{module}:") for t in tests
        }
        mirrored = {test for test in self._seconds if test.startswith(mirror_of(module))}
        return [*sorted(found | mirrored), *elsewhere]

    def _within_budget(self, module: str, tests: list[str]) -> tuple[list[str], float]:
        mirror, total, chosen = mirror_of(module), 0.0, []

        def rank(test: str) -> float:
            seconds = self._seconds.get(test, 30.0)
            return seconds if test.startswith(mirror) else 3 * seconds + 0.1

        for test in sorted(tests, key=rank):
            seconds = self._seconds.get(test, 30.0)
            if not chosen or total + seconds < self._budget:
                chosen.append(test)
                total += seconds
        return chosen, total


def test_mutants(checkout: Path, planned: list[tuple[bool, dict]], outcomes: Path) -> None:
    known = [json.loads(line) for line in outcomes.open()] if outcomes.exists() else []
    done = {found["name"] for found in known if found["outcome"] != "late"}
    left = [(live, entry) for live, entry in planned if entry["name"] not in done]
    print(f"{len(planned)} mutants, {len(left)} of them left")
    for live in (True, False):
        plan = [entry for other, entry in left if other == live]
        file = checkout.parent / f"plan-{live}.json"
        file.write_text(json.dumps(plan))
        if plan and live:
            files = sorted({test.split("::")[0] for entry in plan for test in entry["tests"]})
            plugin = ["-p", "tests.mutation.forked", "--mutants", str(file)]
            run([*PYTEST, *plugin, "--outcomes", str(outcomes), *files], checkout)
        elif plan:
            command = [sys.executable, "-m", "tests.mutation.fresh", str(file), str(outcomes)]
            run(command, checkout)


def report(outcomes: Path) -> None:
    """Print the survivors, and how many of each module were caught."""
    known = accepted()
    counts: dict[str, Counter[str]] = {}
    for line in outcomes.open():
        found = json.loads(line)
        if found["outcome"] == "late":
            continue
        if (found["module"], found["before"], found["after"]) in known:
            found["outcome"] = "equivalent"
        counts.setdefault(found["module"], Counter())[found["outcome"]] += 1
        if found["outcome"] not in ("caught", "equivalent"):
            print(f"{found['outcome']} {found['name']} ({found['tests']} tests) {found['by']}")
            print(f"  - {found['before']}\n  + {found['after']}")
    total: Counter[str] = Counter()
    for module, count in sorted(counts.items()):
        total += count
        print(f"{module}: {count['caught']} of {count.total() - count['equivalent']}")
    tested = total.total() - total["equivalent"]
    share = total["caught"] / max(tested, 1)
    print(f"{total['caught']} of {tested} caught ({share:.1%}); {dict(total)}")


def _of_fault(fault: Fault) -> Mutant | None:
    mutant = fault.mutant()
    if mutant is None:
        print(f"{fault.what}: its line is not, or not once, in {fault.module}")
    return mutant


def chosen_mutants(options: argparse.Namespace) -> list[Mutant]:
    known = set() if options.with_equivalents else accepted()
    if options.modules:
        modules = modules_below(options.modules)
        return sample(modules, options.sample, options.seed, known)
    found = []
    for name, room in ROOMS.items():
        if options.rooms is None or name in options.rooms:
            count = round(room.share * options.portion)
            found += sample(modules_below(list(room.paths)), count, options.seed, known)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="paths from the checkout; none: all rooms")
    parser.add_argument("--known", action="store_true", help="the known faults, one at a time")
    parser.add_argument("--rooms", nargs="*", help="only these of the rooms")
    parser.add_argument("--sample", type=int, default=20)
    parser.add_argument("--portion", type=float, default=1.0, help="of the rooms' shares")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tests", nargs="*", default=SUITE, help="tests to choose from")
    parser.add_argument("--marks", default=QUICK, help="which of them, as for pytest -m")
    parser.add_argument("--reach", type=Path, help="kept between runs: which test calls what")
    parser.add_argument("--outcomes", type=Path, help="kept between runs: what is known already")
    parser.add_argument("--budget", type=float, default=40.0, help="seconds of tests for a mutant")
    parser.add_argument("--with-equivalents", action="store_true")
    parser.add_argument("--only-reach", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ifsq-mutation-") as temporary:
        folder = Path(temporary)
        checkout = copy_checkout(folder)
        outcomes = options.outcomes or folder / "outcomes.jsonl"
        reach = options.reach or folder / "reach.json"
        if not reach.exists() and not options.known:
            measure_reach(checkout, options.tests, options.marks, reach)
        if options.known:
            planned = plan_known()
        elif not options.only_reach:
            planner = Planner(json.loads(reach.read_text()), options.budget)
            planned = [planner.plan(mutant) for mutant in chosen_mutants(options)]
        else:
            return
        test_mutants(checkout, planned, outcomes)
        report(outcomes)


if __name__ == "__main__":
    main()
