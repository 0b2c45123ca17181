"""Small token datasets on disk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.known_tokens import SPEC, write_dataset


@pytest.fixture
def dataset_folder(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "tokens")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Writes a dataset whose spec differs from the usual one in the given fields."""

    def make(**changes: object) -> Path:
        return write_dataset(tmp_path / "changed", replace(SPEC, **changes))  # type: ignore[arg-type]

    return make
