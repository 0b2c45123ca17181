"""Packing, indexing and copying, refused at any of their changes: unfinished, or the whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data_pipelines.copying import StoragePlace, copy_files
from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.manifest import MANIFEST_JSON, MANIFEST_TABLE, ShardManifest
from data_pipelines.storage.open import open_storage
from tests.support.disk_record import recorded_disk, refused_at_every_change
from tests.support.image_samples import write_class_folder
from tests.support.memory_bucket import memory_buckets


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folder(tmp_path_factory.mktemp("images") / "source", per_class=2)


def pack(images: Path, target: Path | str) -> ShardManifest:
    return pack_folder(images, target, shard_bytes=8000, threads=1)


def visible(folder: Path) -> dict[str, bytes]:
    storage = open_storage(folder)
    return {name: storage.read(name) for name in storage.list()}


def refuses_to_open(url: Path | str) -> None:
    with pytest.raises((DataError, UserError)):
        ShardManifest.open(url)


def test_packing_is_unfinished_until_its_manifest_and_goes_on(images: Path, tmp_path: Path) -> None:
    refused = 0
    for output, renamed in refused_at_every_change(lambda out: pack(images, out), tmp_path):
        if MANIFEST_JSON in renamed:
            assert ShardManifest.open(output).num_samples == 6
        else:
            refuses_to_open(output)
        pack(images, output)
        assert visible(output) == visible(tmp_path / "whole")
        refused += 1
    # Two shards with their indices, table, manifest and marker: three changes each.
    assert refused == 21


def test_an_index_follows_its_tar_and_the_table_follows_them(images: Path, tmp_path: Path) -> None:
    """Nothing is named before it is there: an index of no tar, a table of no index."""
    with recorded_disk() as record:
        pack(images, tmp_path / "packed")
    names = [name for kind, name in record.operations if kind == "rename"]
    assert names == [
        "ifsq-output.json",
        "shard-000000.tar",
        "shard-000000.arrow",
        "shard-000001.tar",
        "shard-000001.arrow",
        MANIFEST_TABLE,
        MANIFEST_JSON,
    ]


def test_indexing_is_unfinished_until_its_manifest_and_goes_on(
    images: Path, tmp_path: Path
) -> None:
    pack(images, tmp_path / "packed")

    def tars_only(folder: Path) -> None:
        folder.mkdir(parents=True)
        for tar in (tmp_path / "packed").glob("*.tar"):
            shutil.copy(tar, folder)

    jobs = refused_at_every_change(lambda out: index_tars(out, threads=1), tmp_path / "runs",
                                   start=tars_only)  # fmt: skip
    for output, renamed in jobs:
        if MANIFEST_JSON not in renamed:
            refuses_to_open(output)
        index_tars(output, threads=1)
        found, whole = visible(output), visible(tmp_path / "runs/whole")
        assert found == whole


def copy(source: Path | str, target: Path | str) -> None:
    here, there = StoragePlace(open_storage(source)), StoragePlace(open_storage(target))
    copy_files(here, there, lambda _: None)


def test_a_copy_is_no_dataset_until_it_is_whole(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "packed")
    jobs = refused_at_every_change(
        lambda out: copy(tmp_path / "packed", out), tmp_path / "runs", kinds=("rename",)
    )
    for output, renamed in jobs:
        if MANIFEST_JSON not in renamed:
            refuses_to_open(output)
        copy(tmp_path / "packed", output)
        assert visible(output) == visible(tmp_path / "packed")


def test_a_bucket_holds_a_dataset_once_its_manifest_is_put(images: Path, tmp_path: Path) -> None:
    """The same bytes as in a folder, in the same order; and from any refusal on it goes on."""
    pack(images, tmp_path / "packed")
    with memory_buckets() as record:
        pack(images, "s3://whole/data")
        whole = list(record.operations)
        assert [path for _, path in whole][-2:] == [MANIFEST_TABLE, MANIFEST_JSON]
        storage = open_storage("s3://whole/data")
        assert {n: storage.read(n) for n in storage.list()} == visible(tmp_path / "packed")
        for number in range(len(whole)):
            url = f"s3://refused-{number}/data"
            record.operations, record.fail_at = [], number
            with pytest.raises((DataError, UserError), match="503 SlowDown"):
                pack(images, url)
            refuses_to_open(url)
            record.fail_at = None
            pack(images, url)
            storage = open_storage(url)
            assert {n: storage.read(n) for n in storage.list()} == visible(tmp_path / "packed")


def test_of_two_that_create_an_object_one_wins_and_the_other_learns_it() -> None:
    with memory_buckets():
        storage = open_storage("s3://bucket/data")
        assert storage.put_if_absent("a", b"first")
        assert not storage.put_if_absent("a", b"second")
        assert storage.read("a") == b"first"
        storage.write("a", b"third")
        assert storage.read("a") == b"third"
        assert storage.size("a") == 5
        assert storage.read_range("a", 1, 3) == b"hir"
        storage.delete("a")
        storage.delete("a")
        assert not storage.exists("a")


def test_an_upload_to_a_bucket_leaves_its_source(tmp_path: Path) -> None:
    """A retry needs it; whoever made it removes it."""
    (tmp_path / "file").write_bytes(b"contents")
    with memory_buckets():
        storage = open_storage("s3://bucket/data")
        storage.upload("there/it", tmp_path / "file")
        assert storage.list("there/") == ["there/it"]
        assert storage.read("there/it") == b"contents"
    assert (tmp_path / "file").read_bytes() == b"contents"
