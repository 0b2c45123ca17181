"""Rules about the repository itself: its top level, what text may name, how large files are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY, tracked_files

FOLDERS = {"ifsq_train", "launchers", "data_pipelines", "k8s", "tests", "docs"}
# In two parts, so that this file does not contain them itself.
FORBIDDEN = ("/wo" + "rk/", "/ro" + "ot/", "py" + "pi.org", "python" + "hosted", "npm" + "js.com")
MAX_BYTES = 512 * 1024


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files git tracks, relative to the repository."""
    return tracked_files()


def test_top_level_folders(tracked: list[Path]) -> None:
    folders = {name.parts[0] for name in tracked if len(name.parts) > 1}
    assert {folder for folder in folders if not folder.startswith(".")} == FOLDERS


def test_no_text_names_a_machine_path_or_a_package_index(tracked: list[Path]) -> None:
    found = []
    for name in tracked:
        data = (REPOSITORY / name).read_bytes()
        found += [f"{name}: {text}" for text in FORBIDDEN if text.encode() in data]
    assert found == []


def test_no_file_is_large(tracked: list[Path]) -> None:
    sizes = {str(name): (REPOSITORY / name).stat().st_size for name in tracked}
    assert {name: size for name, size in sizes.items() if size > MAX_BYTES} == {}


def test_no_symbolic_link_leaves_the_repository(tracked: list[Path]) -> None:
    links = [name for name in tracked if (REPOSITORY / name).is_symlink()]
    outside = [
        str(name) for name in links if not (REPOSITORY / name).resolve().is_relative_to(REPOSITORY)
    ]
    assert outside == []


def test_tests_are_packages_and_import_helpers_by_their_full_name(tracked: list[Path]) -> None:
    """Equal file names in two folders are then no clash, and no folder is put on the path."""
    tests = [path for path in tracked if path.parts[0] == "tests" and path.suffix == ".py"]
    folders = {path.parent for path in tests}
    assert [str(f) for f in sorted(folders) if not (REPOSITORY / f / "__init__.py").is_file()] == []
    call = "sys.path." + "insert"
    assert [str(path) for path in tests if call in (REPOSITORY / path).read_text()] == []


def test_the_suite_needs_no_benchmark(tracked: list[Path]) -> None:
    """What both use lies in tests/support."""
    package = "tests." + "benchmarks"
    found = [
        f"{path}: {line}"
        for path in tracked
        if path.parts[0] == "tests"
        and path.suffix == ".py"
        # On a GPU the checks of the ten-minute script are the tests, at small sizes.
        and not {"benchmarks", "gpu"} & set(path.parts)
        for line in (REPOSITORY / path).read_text().splitlines()
        if re.match(rf"\s*(from|import) {re.escape(package)}", line)
    ]
    assert found == []


def test_functions_and_modules_stay_short() -> None:
    """At most 60 lines a function and 400 a module, in the three packages."""
    long = []
    for package in ("ifsq_train", "launchers", "data_pipelines"):
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            text, name = path.read_text(), path.relative_to(REPOSITORY)
            if (lines := len(text.splitlines())) > 400:
                long.append(f"{name}: {lines} lines")
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    lines = (node.end_lineno or node.lineno) - node.lineno + 1
                    if lines > 60:
                        long.append(f"{name}: {node.name} has {lines} lines")
    assert long == []
