"""Disks that fail when a file is read or synced, under the real command: one line with a remedy.

Reading the first bytes of `/proc/self/mem` fails as a broken disk does (EIO), and it is a regular
file; so a link to it stands for any file whose blocks cannot be read.
"""

from __future__ import annotations

import errno
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.images.packing.pack import pack_folder
from launchers.cli import program
from tests.support.disk_record import recorded_disk
from tests.support.hostile_datasets import write_tokens
from tests.support.image_folders import write_photos

Ifsq = Callable[..., tuple[int, str]]
UNREADABLE = "/proc/self/mem"
DOCUMENTS = {
    "a recipe": ("file", "config", "validate", "file"),
    "a class map": ("file", "data", "pack", "photos", "new", "--class-map", "file"),
    "a plug-in": ("file", "recipes-of", "file"),
    "weights": ("w.safetensors", "checkpoint", "import", "w.safetensors", "run", "--recipe",
                "demo/tokenizer"),
    "torch weights": ("w.pt", "checkpoint", "import", "w.pt", "run", "--recipe", "demo/tokenizer"),
    "a result": ("r.json", "compare", "r.json"),
    "a kubeconfig": ("kubeconfig", "jobs"),
    "a manifest": ("packed/manifest.json", "data", "info", "packed"),
    "a table of shards": ("packed/manifest.arrow", "data", "info", "packed"),
    "an image to pack": ("photos/class0/photo0000.jpg", "data", "pack", "photos", "new",
                         "--max-bad-samples", "0"),
    "facts of tokens": ("tokens/tokens.json", "data", "info", "tokens"),
    "a table of tokens": ("tokens/tokens.arrow", "data", "info", "tokens"),
    "a tar": ("tars/a.tar", "data", "index", "tars", "new"),
}  # fmt: skip
WRITERS = {
    "pack": ("data", "pack", "photos", "new"),
    "index": ("data", "index", "packed", "new"),
    "copy": ("data", "copy", "packed", "new"),
    "export": ("export", "tokens", "new", "--layout", "parquet"),
    "export-codes": ("data", "export-codes", "tokens", "new", "labels"),
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sick")
    pack_folder(write_photos(folder / "photos", 4), folder / "packed")
    write_tokens(folder / "tokens")
    (folder / "tars").mkdir()
    return folder


@pytest.fixture
def ifsq(
    parts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ifsq:
    """Runs a command beside a copy of the parts; exit code and what it says of errors."""
    shutil.copytree(parts, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", "kubeconfig")

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["ifsq", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            program.main()
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return int(ended.value.code or 0), said

    return call


@pytest.mark.parametrize("name", DOCUMENTS)
def test_files_that_cannot_be_read(ifsq: Ifsq, name: str) -> None:
    file, *arguments = DOCUMENTS[name]
    if arguments[0] == "recipes-of":
        arguments = ["config", "validate", "demo/tokenizer", "--plugin", file]
    Path(file).unlink(missing_ok=True)
    Path(file).symlink_to(UNREADABLE)
    code, said = ifsq(*arguments)
    assert code == 2
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said


@pytest.mark.parametrize(("number", "remedy"), [
    (errno.EDQUOT, "free some space"), (errno.ENOSPC, "free some space"), (errno.EIO, "dmesg"),
])  # fmt: skip
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_refused_when_a_file_is_synced(
    ifsq: Ifsq, name: str, number: int, remedy: str
) -> None:
    """And the same command finishes the job when the disk takes it."""
    with recorded_disk(fail_at=1, number=number):
        code, said = ifsq(*WRITERS[name])
    assert (code, remedy in said) == (2, True), said
    assert len([line for line in said.splitlines() if line.startswith("error: ")]) == 1
    assert os.strerror(number) in said
    code, said = ifsq(*WRITERS[name])
    assert code == 0, said
    assert not [path for path in Path().rglob(".*") if "tmp" in path.name]
