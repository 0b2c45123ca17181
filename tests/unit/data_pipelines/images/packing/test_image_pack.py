"""Packing folders: deterministic bytes, resumable, refuses what it cannot do."""

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from webdataset.compat import WebDataset

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.pack import pack_folder, pack_samples
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.verify import verify_dataset
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import encode, smooth_pixels

SHARD_BYTES = 10_000


def _pack(source: Path, target: Path, **options: Any) -> ShardManifest:
    options = {"shard_bytes": SHARD_BYTES, "threads": 2, **options}
    return pack_folder(source, target, **options)


def _all_samples(manifest: ShardManifest):
    return ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))


def test_every_image_is_packed_with_its_bytes_and_label(class_folder, tmp_path):
    manifest = _pack(class_folder, tmp_path / "packed")
    assert manifest.num_shards > 1
    assert manifest.classes == ["class0", "class1", "class2"]
    source = {
        (path.parent.name, path.read_bytes()) for path in class_folder.rglob("*") if path.is_file()
    }
    samples = _all_samples(manifest)
    assert {(manifest.classes[s.label], bytes(s.data)) for s in samples} == source
    assert len({s.key for s in samples}) == len(samples) == 15


def test_webdataset_reads_the_shards(class_folder, tmp_path):
    manifest = _pack(class_folder, tmp_path / "packed")
    urls = sorted(str(path) for path in (tmp_path / "packed").glob("*.tar"))
    found = list(WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [s.key for s in _all_samples(manifest)]
    assert [int(sample["cls"]) for sample in found] == [s.label for s in _all_samples(manifest)]


def test_same_bytes_whatever_the_threads_and_the_place(class_folder, tmp_path, tree_bytes):
    _pack(class_folder, tmp_path / "a", threads=1)
    _pack(class_folder, tmp_path / "elsewhere" / "b", threads=3)
    assert tree_bytes(tmp_path / "a") == tree_bytes(tmp_path / "elsewhere" / "b")


def test_tar_headers_carry_no_time_and_no_user(class_folder, tmp_path):
    _pack(class_folder, tmp_path / "packed")
    with tarfile.open(tmp_path / "packed" / "shard-000000.tar") as tar:
        facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar}
    assert facts == {(0, 0, 0, "ifsq", "ifsq")}


def test_seed_decides_the_order_and_none_keeps_it_sorted(class_folder, tmp_path):
    kept = [s.key for s in _all_samples(_pack(class_folder, tmp_path / "a", seed=None))]
    first = [s.key for s in _all_samples(_pack(class_folder, tmp_path / "b", seed=1))]
    second = [s.key for s in _all_samples(_pack(class_folder, tmp_path / "c", seed=2))]
    assert kept == sorted(kept)
    assert first != second
    assert sorted(first) == sorted(second) == kept


def test_packing_again_changes_nothing_and_says_so(class_folder, tmp_path, tree_bytes, caplog):
    first = _pack(class_folder, tmp_path / "packed")
    before = tree_bytes(tmp_path / "packed")
    caplog.set_level("INFO")
    again = _pack(class_folder, tmp_path / "packed")
    assert again.digest == first.digest
    assert tree_bytes(tmp_path / "packed") == before
    assert "nothing to do" in caplog.text


@pytest.mark.parametrize("change", ["options", "source"])
def test_packing_something_else_over_a_dataset_is_refused(class_folder, tmp_path, change):
    _pack(class_folder, tmp_path / "packed")
    options = {}
    if change == "options":
        options = {"seed": 5}
    else:
        (class_folder / "class0" / "new.jpg").write_bytes(encode(smooth_pixels(30, 30)))
    said = "seed: 0 -> 5" if change == "options" else "source.images: 15 -> 16; .*fingerprint"
    with pytest.raises(UserError, match=f"already holds another dataset.*{said}"):
        _pack(class_folder, tmp_path / "packed", **options)


@pytest.mark.parametrize("lost", ["manifest.json", "index/shard-000002.arrow", "shard-000002.tar"])
def test_half_finished_packing_is_finished(class_folder, tmp_path, tree_bytes, lost, caplog):
    _pack(class_folder, tmp_path / "packed")
    complete = tree_bytes(tmp_path / "packed")
    (tmp_path / "packed" / "manifest.json").unlink()
    (tmp_path / "packed" / lost).unlink(missing_ok=True)
    caplog.set_level("INFO")
    _pack(class_folder, tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == complete
    assert "continuing" in caplog.text


def test_leftovers_of_another_unfinished_packing_disappear(class_folder, tmp_path, tree_bytes):
    _pack(class_folder, tmp_path / "clean")
    _pack(class_folder, tmp_path / "used", shard_bytes=1, seed=9)
    (tmp_path / "used" / "manifest.json").unlink()
    _pack(class_folder, tmp_path / "used")
    assert tree_bytes(tmp_path / "used") == tree_bytes(tmp_path / "clean")


def test_flat_folder_has_no_labels(tmp_path):
    source = tmp_path / "flat"
    source.mkdir()
    for i in range(3):
        (source / f"{i}.jpg").write_bytes(encode(smooth_pixels(30, 30, i)))
    manifest = _pack(source, tmp_path / "packed")
    assert manifest.classes == []
    assert [s.label for s in _all_samples(manifest)] == [-1, -1, -1]


def test_names_that_would_collide_get_unique_keys(tmp_path):
    folder = tmp_path / "source" / "cat.big"
    folder.mkdir(parents=True)
    for name in ("a.b.jpg", "a_b.jpg", "a_b.png", "ü 1.jpeg", "c.JPG"):
        image_format = "PNG" if name.endswith("png") else "JPEG"
        (folder / name).write_bytes(encode(smooth_pixels(20, 20), image_format))
    manifest = _pack(tmp_path / "source", tmp_path / "packed")
    keys = [s.key for s in _all_samples(manifest)]
    assert len(set(keys)) == 5
    assert {"cat.big/c", "cat.big/ü 1"} <= set(keys)
    assert verify_dataset(tmp_path / "packed").ok


def test_bad_images_are_left_out_and_named(class_folder, tmp_path):
    (class_folder / "class1" / "broken.jpg").write_bytes(encode(smooth_pixels(30, 30))[:-40])
    (class_folder / "class2" / "empty.jpg").write_bytes(b"")
    manifest = _pack(class_folder, tmp_path / "packed", max_bad_samples=2)
    lines = (tmp_path / "packed" / "quarantine.jsonl").read_text().splitlines()
    named = {fields["key"]: fields["reason"] for fields in map(json.loads, lines)}
    assert manifest.num_samples == 15
    assert manifest.facts["num_bad_samples"] == 2
    assert set(named) == {"class1/broken.jpg", "class2/empty.jpg"}
    assert named["class2/empty.jpg"] == "empty file"


def test_bad_images_are_counted_again_after_an_interruption(class_folder, tmp_path, tree_bytes):
    (class_folder / "class1" / "broken.jpg").write_bytes(b"junk")
    _pack(class_folder, tmp_path / "packed")
    complete = tree_bytes(tmp_path / "packed")
    for path in ("manifest.json", "quarantine.jsonl"):
        (tmp_path / "packed" / path).unlink()
    _pack(class_folder, tmp_path / "packed")
    assert tree_bytes(tmp_path / "packed") == complete


def test_more_bad_images_than_allowed_fail_clearly(class_folder, tmp_path):
    (class_folder / "class1" / "broken.jpg").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"max_bad_samples=0.*class1/broken\.jpg.*not a JPEG"):
        _pack(class_folder, tmp_path / "packed", max_bad_samples=0)
    assert (tmp_path / "packed" / "quarantine.jsonl").exists()
    assert not (tmp_path / "packed" / "manifest.json").exists()


def test_missing_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        _pack(tmp_path / "nowhere", tmp_path / "packed")


def test_folder_without_images_names_the_formats(tmp_path):
    (tmp_path / "source" / "sub").mkdir(parents=True)
    (tmp_path / "source" / "sub" / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"allowed are \.jpg, \.png, \.webp"):
        _pack(tmp_path / "source", tmp_path / "packed")


def test_images_beside_class_folders_are_refused(class_folder, tmp_path):
    (class_folder / "stray.jpg").write_bytes(encode(smooth_pixels(20, 20)))
    with pytest.raises(UserError, match=r"both directly \(stray\.jpg\) and in folders"):
        _pack(class_folder, tmp_path / "packed")


def test_progress_is_reported(class_folder, tmp_path):
    seen: list[tuple[int, int | None]] = []
    _pack(
        class_folder,
        tmp_path / "packed",
        on_progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(i, 15) for i in range(1, 16)]


def _triples(count: int = 6):
    return [(f"digit-{i}", encode(smooth_pixels(8, 8, i), "PNG"), i % 10) for i in range(count)]


def test_samples_are_packed_in_the_order_given(tmp_path):
    classes = [str(i) for i in range(10)]
    manifest = pack_samples(_triples(), tmp_path, classes=classes, shard_bytes=400)
    samples = _all_samples(manifest)
    assert [(s.key, bytes(s.data), s.label) for s in samples] == _triples()
    assert manifest.classes == classes


def test_fingerprint_lets_samples_be_packed_again(tmp_path, tree_bytes):
    pack_samples(_triples(), tmp_path, shard_bytes=400, fingerprint="digits")
    complete = tree_bytes(tmp_path)
    pack_samples(_triples(), tmp_path, shard_bytes=400, fingerprint="digits")
    (tmp_path / "manifest.json").unlink()
    pack_samples(_triples(), tmp_path, shard_bytes=400, fingerprint="digits")
    assert tree_bytes(tmp_path) == complete
    with pytest.raises(UserError, match="already holds another dataset"):
        pack_samples(_triples(), tmp_path, shard_bytes=400, fingerprint="other")


def test_key_given_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match="'digit-0' was given twice"):
        pack_samples([*_triples(1), *_triples(1)], tmp_path)


def test_key_with_a_dot_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"'a\.b' cannot be packed"):
        pack_samples([("a.b", b"", 0)], tmp_path)


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(UserError, match="nothing was packed"):
        pack_samples([], tmp_path)
