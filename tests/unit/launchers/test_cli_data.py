"""The commands `ifsq data ...`: what they take, and what they say."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_folders import write_photos
from PIL import Image

from data_pipelines.manifest import ShardManifest
from launchers import cli


@pytest.fixture
def ifsq(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Any:
    """Runs `ifsq data ...` in this process: exit code, output, errors."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ifsq", "data", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_folders_are_packed_with_a_class_map_and_smaller(ifsq, tmp_path):
    photos = write_photos(tmp_path / "photos", 6)
    (tmp_path / "map.txt").write_text("class2 two\nclass1 one\nclass0 zero\n")
    target = tmp_path / "out"
    code, output, _ = ifsq(
        "pack", photos, target, "--class-map", tmp_path / "map.txt", "--resize", 40
    )
    assert code == 0
    assert "samples              6" in output
    manifest = ShardManifest.open(target)
    assert manifest.classes == ["two", "one", "zero"]
    rows = manifest.rows(0)
    assert np.minimum(rows.height, rows.width).tolist() == [40] * 6
    assert ifsq("verify", target)[0] == 0


def test_parquet_files_are_recognised(ifsq, tmp_path):
    images = [path.read_bytes() for path in write_photos(tmp_path / "p", 4).rglob("*.jpg")]
    table = pa.table({"img": [{"bytes": data, "path": None} for data in images]})
    (tmp_path / "hub" / "data").mkdir(parents=True)
    pq.write_table(table, tmp_path / "hub" / "data" / "train.parquet")
    code, _, error = ifsq("pack", tmp_path / "hub", tmp_path / "out")
    assert code == 2
    assert "no column 'image'; it has img" in error
    columns = ("--image-column", "img", "--label-column", "")
    assert ifsq("pack", tmp_path / "hub", tmp_path / "out", *columns)[0] == 0
    assert ShardManifest.open(tmp_path / "out").num_samples == 4


def test_preview_of_a_dataset_and_of_a_recipe(ifsq, tmp_path):
    ifsq("pack", write_photos(tmp_path / "photos", 8), tmp_path / "out")
    picture = tmp_path / "a.png"
    code, said, _ = ifsq(
        "preview", tmp_path / "out", "--image-size", 32, "--count", 6, "--output", picture
    )
    assert (code, Image.open(picture).format) == (0, "PNG")
    assert said.startswith("6 images of batch 0")
    changes = (f"data.url={tmp_path / 'out'}", "data.global_batch_size=4",
               "data.view={kind: adm_center, image_size: 32}")  # fmt: skip
    code, said, error = ifsq("preview", "demo/images-tokenizer", *changes, "--output", picture)
    assert (code, error) == (0, "")
    assert said.startswith("4 images of batch 0")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("preview", "demo/generator"), "trains on no images"),
        (("preview", "nowhere"), "holds no finished dataset"),
        (("preview", "nowhere", "a=b"), "is no recipe, so there is nothing to change"),
        (("pack", "nowhere", "out", "--address", "1.2.3.4:5"), "needs --workers"),
        (("pack", "nowhere", "out"), "nowhere does not exist"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(ifsq, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, error = ifsq(*arguments)
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not Path("out").exists()
