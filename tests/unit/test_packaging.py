"""What a wheel must hold: every module, and every file that is no module."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY, tracked_files

PACKAGES = ("data_pipelines", "ifsq_train", "launchers")


def tracked(package: str) -> list[Path]:
    """Files below a package that are in the repository, relative to it."""
    return [path.relative_to(package) for path in tracked_files(package)]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_data_file_is_declared(package: str) -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert f"{package}*" in settings["packages"]["find"]["include"]
    declared = {
        path
        for pattern in settings["package-data"][package]
        for path in (REPOSITORY / package).glob(pattern)
    }
    data = [path for path in tracked(package) if path.suffix != ".py"]
    assert data
    assert [str(path) for path in data if REPOSITORY / package / path not in declared] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_of_modules_is_a_package(package: str) -> None:
    files = set(tracked(package))
    folders = {path.parent for path in files if path.suffix == ".py"}
    assert [str(one) for one in folders if one / "__init__.py" not in files] == []
