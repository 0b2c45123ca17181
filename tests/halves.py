"""Run the suite in two processes side by side: `python -m tests.halves [arguments of pytest]`.

One process has the tests that start Ray, ranks and servers and mostly wait for them, the other all
the rest, which mostly compute. The first one's output is shown after the second one's, and the
last line counts both.
"""

from __future__ import annotations

import collections
import re
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent
WAITING = ("distributed", "end_to_end")
NO_TESTS = 5
"""Exit code of pytest where the arguments choose none."""


def computing() -> list[str]:
    """Folders of all other tests."""
    ignored = {*WAITING, "benchmarks", "support", "mutation", "__pycache__"}
    folders = [path for path in TESTS.iterdir() if path.is_dir() and path.name not in ignored]
    return sorted(str(path) for path in folders)


def main(arguments: list[str]) -> int:
    """Exit code: 0 where both halves passed, or one did and the other has no such test."""
    command = [sys.executable, "-m", "pytest", *arguments]
    waiting = [str(TESTS / name) for name in WAITING]
    with tempfile.TemporaryFile("w+b") as kept, tempfile.TemporaryFile("w+b") as counted:
        other = subprocess.Popen([*command, *waiting], stdout=kept, stderr=subprocess.STDOUT)
        try:
            own = _shown([*command, *computing()], counted)
            others = other.wait()
        except BaseException:
            other.terminate()
            other.wait()
            raise
        kept.seek(0)
        counted.seek(0)
        said = kept.read().decode(errors="replace")
        print(said, end="", flush=True)
        print(_together(said, counted.read().decode(errors="replace")))
    codes = {own, others}
    return max(codes - {NO_TESTS}, default=NO_TESTS) if codes != {0} else 0


def _shown(command: list[str], copy: object) -> int:
    """Run a command, show what it prints and keep a copy; its exit code."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            copy.write(line)  # type: ignore[attr-defined]
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _together(*outputs: str) -> str:
    """One line of counts, as pytest writes it."""
    counts: collections.Counter[str] = collections.Counter()
    seconds = 0.0
    for text in outputs:
        lines = [line for line in text.splitlines() if re.search(r" in [\d.]+s", line)]
        if not lines:
            continue
        for number, kind in re.findall(r"(\d+) ([a-z]+)", lines[-1].partition(" in ")[0]):
            counts[kind] += int(number)
        seconds = max(seconds, float(re.findall(r" in ([\d.]+)s", lines[-1])[0]))
    order = ("failed", "passed", "skipped", "deselected", "xfailed", "error", "errors")
    shown = [f"{counts[kind]} {kind}" for kind in order if counts[kind]]
    return f"both: {', '.join(shown) or 'no tests ran'} in {seconds:.2f}s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
