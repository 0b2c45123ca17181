"""Rules about the repository itself: its top level, what text may name, how large files are."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FOLDERS = {"ifsq_train", "launchers", "data_pipelines", "k8s", "tests", "docs"}
# In two parts, so that this file does not contain them itself.
FORBIDDEN = ("/wo" + "rk/", "/ro" + "ot/", "py" + "pi.org", "python" + "hosted", "npm" + "js.com")
MAX_BYTES = 512 * 1024


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    """Files git tracks, relative to the repository."""
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    names = [Path(name) for name in done.stdout.split("\0") if name]
    return [name for name in names if (REPOSITORY / name).is_file()]


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


def test_no_two_test_modules_share_a_name(tracked: list[Path]) -> None:
    """pytest imports test modules by their bare name, so a second one would not be collected."""
    names = [
        path.name
        for path in tracked
        if path.parts[0] == "tests"
        and path.suffix == ".py"
        and path.name != "conftest.py"
        and "benchmarks" not in path.parts
    ]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []
