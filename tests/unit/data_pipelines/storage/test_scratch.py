"""Temporary files on this machine: gone with their block, or, after a kill, with the next one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from data_pipelines.copying import StoragePlace, copy_files
from data_pipelines.storage.open import as_local_file, open_storage, scratch_file
from data_pipelines.storage.scratch import scratch_folder
from tests.support.memory_bucket import memory_buckets

KILLED = """
import os, signal
from data_pipelines.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "shard").write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""

LIVING = """
from data_pipelines.storage.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "shard").write_bytes(b"data")
    print(folder, flush=True)
    input()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_a_killed_process_leaves_goes_with_the_next_one(temporary: Path) -> None:
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", KILLED], check=False)
        assert done.returncode == -9
        assert [path.stat().st_size for path in files(temporary)] == [1000]
    with scratch_folder() as first, scratch_folder() as second:
        assert files(temporary) == []
        (first / "of a living process").touch()
        assert first != second
        assert stat.S_IMODE(first.stat().st_mode) == 0o700
    assert list((temporary / f"ifsq-scratch-{os.getuid()}").iterdir()) == []


def test_what_a_living_process_holds_stays(temporary: Path) -> None:
    """Wherever it lives: its number says nothing in another container."""
    command = [sys.executable, "-c", LIVING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        held = Path(other.stdout.readline().decode().strip())
        assert str(other.pid) not in held.name
        with scratch_folder():
            assert (held / "shard").read_bytes() == b"data"
        other.communicate()
    assert not held.exists()


def test_remote_objects_leave_nothing_on_this_machine(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.tar").write_bytes(b"abc")
    with memory_buckets():
        storage = open_storage("s3://bucket/prefix")
        with scratch_file(storage, "b.tar") as (file, path):
            file.write(b"def")
            file.flush()
            assert temporary in path.parents
            storage.upload("b.tar", path)
        with as_local_file(storage, "b.tar") as path:
            assert path.suffix == ".tar"
            assert (path.read_bytes(), temporary in path.parents) == (b"def", True)
        source = StoragePlace(open_storage(tmp_path / "source"))
        copy_files(source, StoragePlace(storage), print)
        assert storage.read("a.tar") == b"abc"
    assert files(temporary) == []
