"""The notebook of the documentation: its cells run one after the other and show what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from launchers.cli import app
from tests.support.repository import REPOSITORY

NOTEBOOK = REPOSITORY / "docs" / "notebooks" / "first_tokens.ipynb"


def cells() -> list[str]:
    stored = json.loads(NOTEBOOK.read_text())["cells"]
    return ["".join(cell["source"]) for cell in stored if cell["cell_type"] == "code"]


def test_every_cell_runs_and_the_tokenizer_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    first, *others = cells()
    assert 'subprocess.run(["ifsq", *words], check=True)' in first

    def ifsq(*words: str) -> None:
        app(list(words), standalone_mode=False)  # in this process: starting one takes seconds

    names: dict[str, Any] = {"ifsq": ifsq}
    for cell in others:
        exec(compile(cell.replace("steps = 300", "steps = 60"), "notebook", "exec"), names)
    assert names["tokens"].shape == (64, 4, 4, 1)
    mean = torch.stack(names["images"]).mean(0)
    assert names["error"] < (torch.stack(names["images"]) - mean).square().mean()
    assert len(names["drawn"].images) == 10
    assert "of 25 tokens are used" in capsys.readouterr().out


def test_it_is_committed_without_results() -> None:
    stored = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in stored)
