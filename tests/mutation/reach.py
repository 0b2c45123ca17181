"""A pytest plugin: which functions of the packages each test calls, and how long it takes.

``pytest -p tests.mutation.reach --reach FILE`` writes ``{"calls": {"path:function": [test, ...]},
"seconds": {test: ...}}`` of the tests that pass.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType

import pytest

PACKAGES = ("data_pipelines", "ifsq_train", "launchers")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reach", help="file for what each test calls")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reach"):
        config.pluginmanager.register(
            Reach(config.rootpath, Path(str(config.getoption("--reach"))))
        )


class Reach:
    """Follows calls with a trace function that returns nothing, so that lines are not traced."""

    def __init__(self, root: Path, output: Path) -> None:
        self._roots = tuple(f"{root / package}/" for package in PACKAGES)
        self._cut = len(str(root)) + 1
        self._output = output
        self._called: set[CodeType] = set()
        self._fixtures: dict[object, set[CodeType]] = {}
        self._calls: dict[str, list[str]] = defaultdict(list)
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()

    def _trace(self, frame: FrameType, *_: object) -> None:
        self._called.add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef) -> Iterator[None]:
        """What a fixture of several tests calls belongs to each of them."""
        before, self._called = self._called, set()
        yield
        if fixturedef.scope != "function":
            self._fixtures[fixturedef] = set(self._called)
        self._called |= before

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._called = set()
        start = time.perf_counter()
        threading.settrace(self._trace)  # type: ignore[arg-type]
        sys.settrace(self._trace)  # type: ignore[arg-type]
        yield
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]
        if item.nodeid in self._failed:
            return
        self._seconds[item.nodeid] = time.perf_counter() - start
        called = set(self._called)
        for definitions in item._fixtureinfo.name2fixturedefs.values():  # type: ignore[attr-defined]
            for definition in definitions:
                called |= self._fixtures.get(definition, set())
        for code in called:
            if code.co_filename.startswith(self._roots):
                key = f"{code.co_filename[self._cut :]}:{code.co_qualname}"
                self._calls[key].append(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or report.skipped:
            self._failed.add(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        calls = {key: sorted(set(tests)) for key, tests in self._calls.items()}
        self._output.write_text(json.dumps({"calls": calls, "seconds": self._seconds}))
