"""The commands `ifsq data ...`: what they take, and what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_pipelines.manifest import ShardManifest
from launchers.cli import program as cli
from tests.support.image_folders import write_photos


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


def _refusal(result: tuple[int, str, str]) -> str:
    """The one line of a refused command."""
    code, _, said = result
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1), said
    return errors[0]


def test_a_file_where_the_dataset_should_be(ifsq, tmp_path):
    photos = write_photos(tmp_path / "photos", 2)
    (tmp_path / "taken").write_text("notes")
    assert "a file is in the way" in _refusal(ifsq("pack", photos, tmp_path / "taken"))
    line = _refusal(ifsq("pack", photos, tmp_path / "taken" / "deeper"))
    assert "a file is where a folder should be" in line
    assert (tmp_path / "taken").read_text() == "notes"


def test_a_link_to_nothing_is_a_bad_image_by_name(ifsq, tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    (photos / "class0" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert ifsq("pack", photos, tmp_path / "out")[0] == 0
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert "class0/gone.jpg" in line
    assert "No such file" in line


def test_pipes_are_passed_over_and_names_that_are_no_text_are_refused(ifsq, tmp_path):
    photos = write_photos(tmp_path / "photos", 3)
    os.mkfifo(photos / "class0" / "pipe.jpg")
    first = photos / "class0" / "photo0000.jpg"
    first.with_name("über 😀.jpg").write_bytes(first.read_bytes())
    code, said, _ = ifsq("pack", photos, tmp_path / "out")
    assert (code, "samples              4" in said) == (0, True)
    first.rename(os.fsdecode(bytes(first.parent) + b"/\xff.jpg"))
    line = _refusal(ifsq("pack", photos, tmp_path / "again"))
    assert line.startswith("error: the file name b'class0/\\xff.jpg' is not UTF-8, as names")
    assert "convmv" in line


def test_object_storage_without_credentials_asks_nobody_for_them(ifsq, tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    photos = write_photos(tmp_path / "photos", 1)
    assert "set AWS_ACCESS_KEY_ID" in _refusal(ifsq("pack", photos, "s3://bucket/x"))
    assert "names no bucket" in _refusal(ifsq("pack", photos, "s3://"))


def test_preview_of_less_than_a_page(ifsq, tmp_path):
    ifsq("pack", write_photos(tmp_path / "photos", 3), tmp_path / "out")
    picture = tmp_path / "p.png"
    code, said, _ = ifsq("preview", tmp_path / "out", "--image-size", 32, "--output", picture)
    assert (code, said.split()[0]) == (0, "3")


def test_a_picture_cannot_replace_a_folder(ifsq, tmp_path):
    ifsq("pack", write_photos(tmp_path / "photos", 3), tmp_path / "out")
    line = _refusal(ifsq("preview", tmp_path / "out", "--output", tmp_path / "photos"))
    assert "is no regular file; name a PNG file to write" in line
    assert not list(tmp_path.glob(".*"))


def test_unreadable_folders_are_not_passed_over(tmp_path):
    photos = write_photos(tmp_path / "photos", 4)
    # Root may read everything, unless it gives that up.
    limits = "-dac_override,-dac_read_search"
    as_user = ["setpriv", f"--bounding-set={limits}", f"--inh-caps={limits}"]
    (photos / "class1").chmod(0)
    program = [sys.executable, "-m", "launchers.cli", "data", "pack"]
    command = [*(as_user if os.geteuid() == 0 else []), *program, str(photos)]
    done = subprocess.run(
        [*command, str(tmp_path / "out")], capture_output=True, text=True, check=False
    )
    (photos / "class1").chmod(0o755)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {photos}/class1: Permission denied; change its permissions, or choose another"
        " place"
    ]


def test_control_c_loses_nothing(ifsq, tmp_path):
    photos, target = write_photos(tmp_path / "photos", 150), tmp_path / "out"
    arguments = ["data", "pack", str(photos), str(target), "--shard-megabytes", "0.01"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launchers.cli", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    while process.poll() is None and not list(target.glob("shard-*.tar")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == (
        "stopped by SIGINT: finished shards are kept; run the same command again to go on"
    )
    assert not list(target.rglob(".tmp-*"))
    assert ifsq(*arguments[1:])[0] == 0
    assert ShardManifest.open(target).num_samples == 150
    assert ifsq("verify", target)[0] == 0
