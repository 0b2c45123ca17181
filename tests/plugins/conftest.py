"""Plug-ins of one test module are unknown to the next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ifsq_train.plugins.files import forget_files, load_files
from ifsq_train.plugins.registry import forgotten_afterwards

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def idea(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The plug-in a test module is about: test_bsq.py loads bsq.py, as `--plugin` does."""
    path = HERE / Path(request.path).name.removeprefix("test_")
    with forgotten_afterwards():
        load_files([path])
        yield path
    forget_files()
