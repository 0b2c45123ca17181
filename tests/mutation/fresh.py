"""Mutants whose module has to be imported again: forked where only the libraries are loaded.

``python -m tests.mutation.fresh PLAN OUTCOMES`` in a copy of the checkout, whose files it changes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from tests.mutation.forked import add_outcome, in_child

LIBRARIES = [
    "numpy", "torch", "torch._dynamo", "torchvision", "pyarrow.parquet", "pyarrow.dataset",
    "pydantic", "omegaconf", "PIL.Image", "safetensors.torch", "simplejpeg", "typer.testing",
    "yaml", "rich.console", "prometheus_client", "psutil", "hypothesis.strategies", "pytest",
    "kubernetes.client", "obstore", "scipy.stats", "sklearn.datasets", "webdataset",
]  # fmt: skip
LATER = 100_000
"""Seconds by which a changed file is newer: compiled files of the unchanged one do not fit it."""


class First:
    """Remembers the first failure of a run of pytest."""

    def __init__(self) -> None:
        self.failed: str | None = None

    def pytest_runtest_logreport(self, report) -> None:
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report) -> None:
        if report.failed and self.failed is None:
            self.failed = f"import of {report.nodeid}"


def run_tests(names: list[str]) -> str | None:
    import pytest

    first = First()
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    code = pytest.main([*options, *names], plugins=[first])
    if code not in (0, 1, 2, 3, 4):
        raise RuntimeError(f"pytest ended with {code}")
    return first.failed or (None if code == 0 else f"pytest ended with {code}")


def main() -> None:
    plan, outcomes = Path(sys.argv[1]), Path(sys.argv[2])
    for name in LIBRARIES:
        with suppress(ImportError):
            importlib.import_module(name)
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    for mutant in json.loads(plan.read_text()):
        path = Path(mutant["module"])
        before, times = path.read_bytes(), path.stat()
        try:
            path.write_text(mutant["source"])
            os.utime(path, (times.st_atime, times.st_mtime + LATER))
            outcome = in_child(lambda names=mutant["tests"]: run_tests(names), mutant["limit"])
        finally:
            path.write_bytes(before)
            os.utime(path, (times.st_atime, times.st_mtime))
        add_outcome(outcomes, mutant, outcome)


if __name__ == "__main__":
    main()
