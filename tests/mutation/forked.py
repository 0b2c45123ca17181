"""A pytest plugin: collect once, then fork for every mutant and run the tests that reach it.

The plan is a JSON list of ``{"module", "line", "name", "source", "before", "after", "tests",
"limit"}``; one line of JSON is added to the outcomes for each. Faults in code that runs when a
module is imported are for `fresh`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.mutation.live_code import changed_functions, replace

CAUGHT, SURVIVED, BROKEN = 1, 0, 3
EXTRA_BYTES = 12 * 2**30
"""Address space a mutant may take: one that asks for all memory must not get it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--mutants", help="plan")
    parser.addoption("--outcomes", help="file to which outcomes are added")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--mutants"):
        config.pluginmanager.register(Forked(config))


class Forked:
    """Takes the place of pytest's loop over tests."""

    def __init__(self, config: pytest.Config) -> None:
        self._plan = json.loads(Path(str(config.getoption("--mutants"))).read_text())
        self._outcomes = Path(str(config.getoption("--outcomes")))
        self._root = config.rootpath

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items: dict[str, list[pytest.Item]] = defaultdict(list)
        for item in session.items:  # names of tests and files stand for all there is in them
            whole, file = item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]
            for name in {item.nodeid, whole, file}:
                items[name].append(item)
        for mutant in self._plan:
            chosen = [item for name in mutant["tests"] for item in items.get(name, [])]

            def test(mutant: dict = mutant, chosen: list[pytest.Item] = chosen) -> str | None:
                self._apply(mutant)
                return first_failure(session, chosen)

            add_outcome(self._outcomes, mutant, in_child(test, mutant["limit"]))
        return True

    def _apply(self, mutant: dict[str, Any]) -> None:
        path = self._root / mutant["module"]
        changed = changed_functions(str(path), path.read_text(), mutant["source"])
        assert changed is not None
        if mutant["source"] != path.read_text():
            assert replace(str(path), changed[1]) > 0, "no function of that module is alive"


def first_failure(session: pytest.Session, items: list[pytest.Item]) -> str | None:
    """The first test that fails; fixtures are torn down whatever happens."""
    from _pytest.runner import runtestprotocol

    try:
        for item, following in zip(items, [*items[1:], None], strict=True):
            reports = runtestprotocol(item, nextitem=following, log=False)
            if any(report.failed for report in reports):
                return item.nodeid
        return None
    finally:
        with suppress(BaseException):
            session._setupstate.teardown_exact(None)


def in_child(test: Callable[[], str | None], limit: float) -> tuple[str, str]:
    """(caught, test), (caught, "time"), (survived, "") or (broken, why) of a forked process.

    (late, "time") where the machine may be why it took so long: that says nothing.
    """
    folder = Path(tempfile.mkdtemp(prefix="ifsq-mutant-"))
    child = os.fork()
    if child == 0:
        _run_in_child(test, folder)
    deadline = time.monotonic() + limit
    status = None
    while status is None and time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        status = code if done else None
        time.sleep(0.005)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    said = (folder / "said").read_text() if (folder / "said").exists() else ""
    shutil.rmtree(folder, ignore_errors=True)
    if status is None:
        return ("late" if _is_busy() else "caught"), "time"
    code = os.waitstatus_to_exitcode(status)
    if code in (SURVIVED, BROKEN):
        return ("survived" if code == SURVIVED else "broken"), said
    return "caught", said or f"process ended with {code}"


def _is_busy() -> bool:
    return os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1)


def _run_in_child(test: Callable[[], str | None], folder: Path) -> None:
    os.setsid()
    output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    _restrain(folder)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + EXTRA_BYTES, most))
    sys.dont_write_bytecode = True
    code = BROKEN
    try:
        failed = test()
        code = SURVIVED if failed is None else CAUGHT
        (folder / "said").write_text(failed or "")
    except BaseException as error:
        (folder / "said").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def _restrain(folder: Path) -> None:
    """A fault may aim a signal or a deletion at anything: only this process and folder are hit."""
    kill, rmtree, me = os.kill, shutil.rmtree, os.getpid()

    def careful_kill(pid: int, number: int) -> None:
        if number != 0 and (pid <= 1 or os.getsid(pid) != me):
            raise PermissionError(f"a mutant sends {number} to {pid}")
        kill(pid, number)

    def careful_killpg(group: int, number: int) -> None:
        careful_kill(group, number)
        kill(-group, number)

    def careful_rmtree(path: Any, *arguments: Any, **options: Any) -> None:
        if not str(Path(path).resolve()).startswith((str(folder), "/tmp", "/dev/shm")):
            raise PermissionError(f"a mutant deletes {path}")
        rmtree(path, *arguments, **options)

    os.kill, os.killpg = careful_kill, careful_killpg
    setattr(shutil, "rmtree", careful_rmtree)  # noqa: B010


def add_outcome(path: Path, mutant: dict[str, Any], outcome: tuple[str, str]) -> None:
    record = {key: mutant[key] for key in ("name", "before", "after", "module", "line")}
    record |= {"outcome": outcome[0], "by": outcome[1], "tests": len(mutant["tests"])}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
