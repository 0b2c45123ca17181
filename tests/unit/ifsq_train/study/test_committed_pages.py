"""The committed pages of the studies are what the committed records give, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from ifsq_train.config import StudyConfig
from ifsq_train.config.load import list_recipes, load_recipe
from ifsq_train.study.expand import expand
from ifsq_train.study.report import index, make_report, write_report

pytest.importorskip("scipy", reason="verdicts need scipy")

DOCS = Path(__file__).resolve().parents[4] / "docs" / "studies"
NAMES = [name for name, _ in list_recipes() if name.startswith("studies/small/")]


def test_pages_of_the_small_studies_are_reproduced(tmp_path: Path) -> None:
    reports = []
    for name in NAMES:
        config = load_recipe(name)
        assert isinstance(config, StudyConfig)
        reports.append(make_report(name, expand(config), DOCS / "results"))
        for path in write_report(reports[-1], tmp_path):
            committed = DOCS / path.relative_to(tmp_path)
            assert path.read_bytes() == committed.read_bytes(), committed
    assert (DOCS / "index.md").read_text() == index(reports)


def test_no_record_is_left_over() -> None:
    known = set()
    for name in NAMES:
        config = load_recipe(name)
        assert isinstance(config, StudyConfig)
        known |= {f"{stage.folder}.json" for stage in expand(config).stages.values()}
    assert {path.name for path in (DOCS / "results").iterdir()} <= known
