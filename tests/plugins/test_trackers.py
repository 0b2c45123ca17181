"""Trackers from outside: they get what is logged, and one that fails costs the run nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipelines.images.packing.pack import pack_folder
from ifsq_train.plugins.files import forget_files, load_files
from ifsq_train.plugins.registry import forgotten_afterwards
from tests.plugins.runs import VIEW, recipe, tokenizer_task, train
from tests.support.precompute_parts import write_images

IDEA = '''
import json
from typing import Literal
from ifsq_train.config import Config
from ifsq_train.plugins import TrackerKind

class NotesConfig(Config):
    """Keeps what it is told in a file."""
    kind: Literal["notes"]

class BrokenConfig(Config):
    """Fails."""
    kind: Literal["broken"]

class Notes:
    def __init__(self, config, run):
        self.path = run.folder / "notes.json"
        self.told = {"name": run.name}
    def resume(self, step):
        self.told["resumed"] = step
    def scalars(self, step, values):
        self.told[str(step)] = values["loss"]
    def close(self):
        self.path.write_text(json.dumps(self.told))

def broken(config, run):
    raise ConnectionError("nobody answers")

NOTES = TrackerKind(config=NotesConfig, open=Notes)
BROKEN = TrackerKind(config=BrokenConfig, open=broken)
'''


@pytest.fixture
def trackers(tmp_path: Path) -> Iterator[None]:
    (tmp_path / "idea.py").write_text(IDEA)
    with forgotten_afterwards():
        load_files([tmp_path / "idea.py"])
        yield
    forget_files()


def test_a_tracker_that_fails_stops_nothing(
    trackers: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path / "images")
    pack_folder(tmp_path / "images", tmp_path / "dataset", shard_bytes=20_000)
    data = {"kind": "images", "url": str(tmp_path / "dataset"), "view": VIEW}
    task = tokenizer_task({"kind": "ifsq", "levels": [5, 5]})
    values = recipe(tmp_path / "run", data, task, "autoencoder")
    kinds = [{"kind": "broken"}, {"kind": "notes"}]
    assert train({**values, "trackers": kinds}, steps=2)["steps"] == 2
    told = json.loads((tmp_path / "run" / "notes.json").read_text())
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {str(line["step"]): line["loss"] for line in map(json.loads, lines)}
    assert told == {"name": "idea", "resumed": 0, **logged}
    assert "tracker broken failed and is left out" in caplog.text
