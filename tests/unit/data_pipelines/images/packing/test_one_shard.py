"""One shard is made once, again where it is to hold something else, and read member by member."""

from __future__ import annotations

import io
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from data_pipelines.images.packing.shards import (
    PackItem,
    ShardOptions,
    ShardResult,
    ShardWork,
    cut_shards,
    make_shard,
)
from data_pipelines.images.packing.tar import scan_tar
from tests.support.image_samples import encode, smooth_pixels

IMAGE = encode(smooth_pixels(16, 16), "JPEG")
OPTIONS = ShardOptions("source and options of this job")


class Items(list[PackItem]):
    """Counts how often an image was asked for."""

    loads = 0

    def load(self) -> bytes:
        self.loads += 1
        return IMAGE


def work(first: int, count: int, number: int = 1) -> ShardWork:
    items = Items()
    for n in range(first, first + count):
        items.append(PackItem(f"{n:04d}", n % 3, "jpg", f"image {n}", items.load))
    return ShardWork(number, first, items)


def made(
    folder: Path, given: ShardWork, options: ShardOptions = OPTIONS
) -> tuple[ShardResult, int]:
    """The result, and how many images were asked for."""
    result = make_shard(given, str(folder), options)
    assert isinstance(given.items, Items)
    return result, given.items.loads


def test_a_finished_shard_is_not_made_again(tmp_path: Path) -> None:
    """Numbers beyond those that Python keeps once: equal is what counts, not the same."""
    first, loads = made(tmp_path, work(1000, 3))
    assert loads == 3
    assert made(tmp_path, work(1000, 3)) == (first, 0)
    assert first.counts == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("first", [0, 1000])
@pytest.mark.parametrize("change", ["fewer", "more", "later", "other options", "unknown options"])
def test_a_shard_of_other_items_is_made_again(tmp_path: Path, first: int, change: str) -> None:
    made(tmp_path, work(first, 3))
    count, options = {"fewer": 2, "more": 4}.get(change, 3), OPTIONS
    if change.endswith("options"):
        fingerprint = "another job" if change == "other options" else None
        options = replace(OPTIONS, fingerprint=fingerprint)
    given = work(first + (change == "later"), count)
    result, loads = made(tmp_path, given, options)
    assert loads == count
    assert result.entry is not None
    assert result.entry.num_samples == count


def test_a_shard_whose_tar_was_cut_is_made_again(tmp_path: Path) -> None:
    result, _ = made(tmp_path, work(0, 3))
    tar = tmp_path / "shard-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1])
    assert made(tmp_path, work(0, 3)) == (result, 3)
    assert tar.read_bytes() == whole


def test_shards_are_as_full_as_they_may_be_and_nothing_is_left_out() -> None:
    assert list(cut_shards([4, 6, 1, 10, 30, 5, 5], 10)) == [
        range(0, 2), range(2, 3), range(3, 4), range(4, 5), range(5, 7)
    ]  # fmt: skip
    assert list(cut_shards([], 10)) == []


def test_folders_and_labels_of_archives_are_no_members(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, kind in (("0.jpg", tarfile.DIRTYPE), ("backup", b"V"), ("x.jpg", b"D")):
            member = tarfile.TarInfo(name)
            member.type = kind
            tar.addfile(member)
        file = tarfile.TarInfo("0.jpg/1.jpg")
        file.size = len(IMAGE)
        tar.addfile(file, io.BytesIO(IMAGE))
    (member,) = scan_tar(path, "a.tar")
    assert (member.name, member.size, member.problem) == ("0.jpg/1.jpg", len(IMAGE), "")
    assert path.read_bytes()[member.offset : member.offset + member.size] == IMAGE
