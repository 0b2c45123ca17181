"""Which folders a token dataset may be written into."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.errors import UserError
from data_pipelines.storage.open import open_storage
from data_pipelines.storage.outputs import claim
from data_pipelines.tokens.writer import TOKEN_WRITER


def test_the_metrics_address_of_the_writing_process_is_no_foreign_file(tmp_path: Path) -> None:
    """A job publishes where its metrics are read before it publishes the first item."""
    (tmp_path / "metrics_endpoint.json").write_text("[]")
    claim(open_storage(tmp_path), TOKEN_WRITER)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="is not empty and was not made by"):
        claim(open_storage(tmp_path), TOKEN_WRITER)
