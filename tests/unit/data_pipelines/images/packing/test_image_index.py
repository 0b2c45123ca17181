"""Indexing tars made elsewhere, and noticing damaged ones."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.classes import ClassMap
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.samples import group_samples
from data_pipelines.images.packing.tar import scan_tar, split_name
from data_pipelines.images.reader import ImageReader
from data_pipelines.images.verify import verify_dataset
from data_pipelines.manifest import MANIFEST_JSON, MANIFEST_TABLE, ShardManifest
from tests.support.image_samples import encode, smooth_pixels


def _write_tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def _image(i: int) -> bytes:
    return encode(smooth_pixels(30 + i, 40, i))


def _tars(folder: Path, label=lambda i: ("cls", str(i % 3).encode())) -> Path:
    for shard in range(2):
        members = []
        for i in range(4 * shard, 4 * shard + 4):
            extension, data = label(i)
            members += [(f"sample{i:03d}.jpg", _image(i)), (f"sample{i:03d}.{extension}", data)]
        _write_tar(folder / f"part-{shard}.tar", members)
    return folder


def _read(manifest: ShardManifest):
    return ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))


def test_tars_become_a_dataset_and_stay_untouched(tmp_path, tree_bytes):
    before = tree_bytes(_tars(tmp_path))
    manifest = index_tars(tmp_path)
    after = tree_bytes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert [bytes(s.data) for s in _read(manifest)] == [_image(i) for i in range(8)]
    assert [s.label for s in _read(manifest)] == [i % 3 for i in range(8)]
    assert manifest.classes == ["0", "1", "2"]
    assert [s.height for s in _read(manifest)] == list(range(30, 38))


def test_indices_may_lie_elsewhere(tmp_path, tree_bytes):
    before = tree_bytes(_tars(tmp_path / "tars"))
    manifest = index_tars(tmp_path / "tars", tmp_path / "index")
    assert tree_bytes(tmp_path / "tars") == before
    reopened = ShardManifest.open(tmp_path / "index")
    assert [bytes(s.data) for s in _read(reopened)] == [_image(i) for i in range(8)]
    assert manifest.digest == index_tars(_tars(tmp_path / "other")).digest
    assert verify_dataset(tmp_path / "index").ok


@pytest.mark.parametrize(
    "label",
    [
        lambda i: ("json", json.dumps({"label": "ab"[i % 2], "caption": "x"}).encode()),
        lambda i: ("txt", b"ab"[i % 2 : i % 2 + 1] + b"\n"),
    ],
    ids=["json", "txt"],
)
def test_names_become_classes(tmp_path, label):
    manifest = index_tars(_tars(tmp_path, label))
    assert manifest.classes == ["a", "b"]
    assert [s.label for s in _read(manifest)] == [i % 2 for i in range(8)]


def test_integer_labels_in_json(tmp_path):
    manifest = index_tars(_tars(tmp_path, lambda i: ("json", json.dumps({"cls": i}).encode())))
    assert [s.label for s in _read(manifest)] == list(range(8))


def test_captions_are_not_taken_for_integers(tmp_path):
    with pytest.raises(DataError, match="neither a class name nor an integer"):
        index_tars(_tars(tmp_path, lambda _: ("txt", b"a cat")), classes=["cat", "dog"])


def test_samples_without_labels(tmp_path):
    _write_tar(
        tmp_path / "a.tar", [("x.jpg", _image(0)), ("y.png", encode(smooth_pixels(9, 9), "PNG"))]
    )
    manifest = index_tars(tmp_path)
    assert [s.label for s in _read(manifest)] == [-1, -1]
    assert manifest.classes == []


def test_bad_samples_are_left_out_within_the_budget(tmp_path):
    members = [("a.jpg", _image(0)), ("b.jpg", _image(1)[:-30]), ("c.txt", b"no image")]
    _write_tar(tmp_path / "x.tar", members)
    with pytest.raises(DataError, match=r"last is b in x\.tar: image file is truncated"):
        index_tars(tmp_path)
    manifest = index_tars(tmp_path, max_bad_samples=2)
    assert manifest.num_samples == 1
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2


def test_indexing_again_changes_nothing(tmp_path, tree_bytes):
    index_tars(_tars(tmp_path))
    before = tree_bytes(tmp_path)
    index_tars(tmp_path)
    assert tree_bytes(tmp_path) == before


def test_interrupted_indexing_continues(tmp_path, tree_bytes):
    index_tars(_tars(tmp_path))
    before = tree_bytes(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "index" / "part-1.arrow").unlink()
    index_tars(tmp_path)
    assert tree_bytes(tmp_path) == before


def test_changed_tars_are_refused(tmp_path):
    index_tars(_tars(tmp_path))
    _write_tar(tmp_path / "part-0.tar", [("z.jpg", _image(5))])
    with pytest.raises(UserError, match=r"another dataset .*: part-0.tar has other bytes.*index/"):
        index_tars(tmp_path)
    _write_tar(tmp_path / "a.tar", [("y.jpg", _image(5))])
    with pytest.raises(UserError, match=r"a\.tar is new \(2 tars then, 3 now\)"):
        index_tars(tmp_path)


def test_folder_without_tars_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"holds no \.tar files"):
        index_tars(tmp_path)


@pytest.mark.parametrize("cut", [1, 1024, 4000, 9000])
def test_cut_tar_is_refused_with_its_byte(tmp_path, cut):
    path = _tars(tmp_path) / "part-1.tar"
    data = path.read_bytes()
    end = len(data.rstrip(b"\0"))
    path.write_bytes(data[: end - cut])
    with pytest.raises(DataError, match=rf"part-1\.tar is .*cut at byte {end - cut}"):
        index_tars(tmp_path)


def test_tar_cut_between_members_is_refused(tmp_path):
    path = _tars(tmp_path) / "part-0.tar"
    member = scan_tar(path, "x")[4]
    path.write_bytes(path.read_bytes()[: member.offset - 512])
    with pytest.raises(DataError, match=r"part-0\.tar is cut at byte .*end marker is missing"):
        index_tars(tmp_path)


def test_damaged_header_in_the_middle_is_refused(tmp_path):
    path = _tars(tmp_path) / "part-0.tar"
    member = scan_tar(path, "x")[4]
    data = bytearray(path.read_bytes())
    data[member.offset - 512 + 100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"damaged header at byte {member.offset - 512}"):
        index_tars(tmp_path)


def test_file_that_is_no_tar_is_refused(tmp_path):
    (tmp_path / "x.tar").write_bytes(b"hello" * 1000)
    with pytest.raises(DataError, match=r"x\.tar is damaged"):
        index_tars(tmp_path)


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("a/b.JPG", "a/b", "jpg"),
        ("a.d/b.seg.png", "a.d/b", "seg.png"),
        ("b", "b", ""),
        ("a/.hidden", "a/.hidden", ""),
    ],
)
def test_names_split_as_in_webdataset(name, key, extension):
    assert split_name(name) == (key, extension)


def test_members_of_a_key_belong_together(tmp_path):
    _write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.cls", b"2"), ("b.jpg", b"3")])
    samples = list(group_samples(scan_tar(tmp_path / "x.tar", "x.tar")))
    assert [(s.key, sorted(s.members)) for s in samples] == [("a", ["cls", "jpg"]), ("b", ["jpg"])]


def test_image_and_label_may_have_longer_extensions(tmp_path):
    tars = tmp_path / "tars"
    _write_tar(tars / "a.tar", [("x/y.z.jpg", _image(0)), ("x/y.z.cls", b"2")])
    manifest = index_tars(tars)
    (sample,) = _read(manifest)
    assert (sample.key, sample.label, bytes(sample.data)) == ("x/y", 2, _image(0))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (
            [("a.jpg", _image(1)), ("a.cls", b"1"), ("a.cls", b"2")],
            "member .cls comes more than once",
        ),
        ([("a.x.jpg", _image(1)), ("a.y.jpg", _image(2))], "2 image members in x.jpg, y.jpg"),
        ([("a.jpg", _image(1)), ("a.cls", b"99999999999999")], "outside -1 (none) to 999999"),
        ([("a.jpg", _image(1)), ("a.cls", b"-7")], "label -7 is outside"),
        ([("a.txt", b"hello")], "0 image members in txt"),
    ],
)
def test_samples_that_mean_two_things_or_nothing_are_bad(tmp_path, members, reason):
    tars = tmp_path / "tars"
    _write_tar(tars / "a.tar", [("good.jpg", _image(0)), ("good.cls", b"-1"), *members])
    manifest = index_tars(tars, max_bad_samples=2)
    assert [(sample.key, sample.label) for sample in _read(manifest)] == [("good", -1)]
    assert reason in (tars / "quarantine.jsonl").read_text()


def test_tars_without_a_usable_image_make_no_dataset(tmp_path):
    tars = tmp_path / "tars"
    _write_tar(tars / "a.tar", [("readme.txt", b"hello")])
    with pytest.raises(UserError, match="no usable image: readme: 0 image members in txt"):
        index_tars(tars, max_bad_samples=1)
    assert not (tars / "manifest.json").exists()
    for missing in (tmp_path / "nothing", tars / "a.tar"):
        with pytest.raises(UserError, match=r"give the folder the \.tar files are in"):
            index_tars(missing)


def test_a_kept_index_is_not_taken_with_another_numbering(tmp_path):
    """The run before was killed after its indices and before its manifest."""
    _tars(tmp_path, lambda i: ("cls", b"cat" if i % 2 else b"dog"))
    first = ClassMap({"cat": 0, "dog": 1}, ["cat", "dog"])
    index_tars(tmp_path, class_map=first)
    for name in (MANIFEST_JSON, MANIFEST_TABLE):
        (tmp_path / name).unlink()
    other = ClassMap({"cat": 1, "dog": 0}, ["dog", "cat"])
    manifest = index_tars(tmp_path, class_map=other)
    assert manifest.classes == ["dog", "cat"]
    assert [s.label for s in _read(manifest)] == [i % 2 for i in range(8)]
