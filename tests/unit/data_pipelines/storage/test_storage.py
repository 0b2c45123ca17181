"""Folders as storage: atomic writes, one winner, ranges checked."""

import errno
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from data_pipelines.errors import DataError, UserError, as_user_error
from data_pipelines.storage import local
from data_pipelines.storage.objects import QUICK_TIMEOUTS_SECONDS, Patience
from data_pipelines.storage.open import LocalStorage, as_local_file, open_storage, scratch_file


def test_written_bytes_come_back(tmp_path):
    storage = open_storage(tmp_path / "new")
    storage.write("a/b.bin", b"hello")
    assert storage.read("a/b.bin") == b"hello"
    assert bytes(storage.read_range("a/b.bin", 1, 3)) == b"ell"
    assert storage.size("a/b.bin") == 5
    assert storage.list() == ["a/b.bin"]
    assert storage.list("a/") == ["a/b.bin"]
    assert storage.list("b") == []


def test_write_replaces_and_leaves_no_temporary_file(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("x", b"1")
    storage.write("x", b"2")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert storage.read("x") == b"2"


def test_one_of_many_racing_writers_wins(tmp_path):
    storage = LocalStorage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.put_if_absent("x", b"%d" % i), range(16)))
    assert won.count(True) == 1
    assert storage.read("x") == b"%d" % won.index(True)


def test_missing_object_is_named(tmp_path):
    storage = LocalStorage(tmp_path)
    for ask in (storage.read, storage.size, lambda path: storage.read_range(path, 0, 1)):
        with pytest.raises(DataError, match=r"nothing\.bin does not exist"):
            ask("nothing.bin")


def test_short_object_is_an_error(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("x", b"12345")
    with pytest.raises(DataError, match="has 2 bytes from 3 where 10 were expected"):
        storage.read_range("x", 3, 10)


def test_path_outside_the_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="leaves the folder"):
        LocalStorage(tmp_path / "inside").read("../secret")


def test_unknown_url_is_refused():
    with pytest.raises(UserError, match="use a folder path or s3://"):
        open_storage("gopher://host/x")


def test_upload_moves_a_finished_file(tmp_path):
    storage = LocalStorage(tmp_path)
    with scratch_file(storage, "deep/x.tar") as (file, path):
        file.write(b"data")
        file.flush()
        storage.upload("deep/x.tar", path)
    assert storage.list() == ["deep/x.tar"]
    with as_local_file(storage, "deep/x.tar") as local:
        assert local.read_bytes() == b"data"


def test_upload_makes_the_folders_it_needs(tmp_path):
    (tmp_path / "x").write_bytes(b"data")
    storage = LocalStorage(tmp_path / "new")
    storage.upload("two/deep/x", tmp_path / "x")
    assert storage.read("two/deep/x") == b"data"


OTHER_DISK = Path("/dev/shm")


def on_another_disk(folder: Path) -> bool:
    return OTHER_DISK.is_dir() and OTHER_DISK.stat().st_dev != folder.stat().st_dev


def test_upload_from_another_file_system_copies_every_byte(tmp_path, monkeypatch):
    """In pieces, of which the last is shorter."""
    if not on_another_disk(tmp_path):
        pytest.skip("there is one file system only")
    monkeypatch.setattr(local, "_COPY_CHUNK_BYTES", 4)
    storage, data = LocalStorage(tmp_path), b"0123456789"
    with tempfile.NamedTemporaryFile(dir=OTHER_DISK) as source:
        source.write(data)
        source.flush()
        storage.upload("x", Path(source.name))
    assert storage.read("x") == data
    assert storage.list() == ["x"]


def test_writing_leaves_no_file_open(tmp_path):
    """A run writes thousands of files; the system allows a thousand open ones."""
    folder, storage = Path("/proc/self/fd"), LocalStorage(tmp_path)
    storage.write("warm", b"")
    before = len(list(folder.iterdir()))
    for number in range(8):
        storage.write(f"a/{number}", b"1")
        storage.put_if_absent(f"b/{number}", b"1")
        storage.read(f"a/{number}")
    assert len(list(folder.iterdir())) == before


def test_temporary_files_of_killed_writers_go_and_fresh_ones_stay(tmp_path):
    storage = LocalStorage(tmp_path)
    ages = {".tmp-x-old": 3600, ".tmp-x-new": 0, ".result.json.123.tmp": 3600, ".hidden.tmp": 3600}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"half")
        written = time.time() - age
        os.utime(tmp_path / name, (written, written))
    storage.delete_stale_temporaries()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden.tmp", ".tmp-x-new"]


def test_delete_is_idempotent(tmp_path):
    storage = LocalStorage(tmp_path)
    storage.write("x", b"1")
    storage.delete("x")
    storage.delete("x")
    assert not storage.exists("x")


def _patience_after(usual_seconds: float) -> Patience:
    patience = Patience()
    patience.usual_seconds = usual_seconds
    return patience


def test_first_tries_are_given_up_by_what_is_usual_on_the_link():
    limits = [
        None if (step := _patience_after(usual).step) is None else QUICK_TIMEOUTS_SECONDS[step]
        for usual in (0.01, 0.05, 0.09, 0.2, 0.5)
    ]
    assert limits == [0.25, 0.25, 0.5, 1.0, None]
    assert Patience().step == len(QUICK_TIMEOUTS_SECONDS) - 1


def test_a_link_that_became_slow_is_noticed_and_faults_teach_nothing():
    patience = Patience()
    with patience.measured():
        pass
    quick = patience.usual_seconds
    with pytest.raises(DataError), patience.measured():
        raise DataError("fault")
    assert patience.usual_seconds == quick
    for _ in range(5):
        with patience.measured():
            time.sleep(0.05)
    assert patience.usual_seconds is not None
    assert 0.01 < patience.usual_seconds < 0.05


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path):
    target = tmp_path / "shard.tar"
    with (
        pytest.raises(OSError, match="No space left") as caught,
        scratch_file(open_storage(tmp_path), "shard.tar"),
        open("/dev/full", "wb", buffering=0) as disk,  # noqa: PTH123
    ):
        disk.write(b"1")
    message = str(as_user_error(caught.value))
    assert message == (
        f"{target}: No space left on device; free some space, or choose another place, and run the"
        " command again"
    )
    assert list(tmp_path.iterdir()) == []


def test_faults_of_the_program_are_not_called_the_user_s():
    assert as_user_error(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None


@pytest.mark.parametrize(("place", "said"), [("a\0b", "NUL"), ("~nobody-here/x", "no such user")])
def test_places_that_can_be_none_are_refused(place: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        open_storage(place)


def test_two_slashes_are_one(tmp_path: Path) -> None:
    assert open_storage(f"/{tmp_path}").url == str(tmp_path)
