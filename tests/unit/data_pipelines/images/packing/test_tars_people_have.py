"""Tars as they are found: every image and label, or a word about the ones that are not there."""

import io
import json
import subprocess
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.tar import scan_tar
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import encode, smooth_pixels

IMAGES = [encode(smooth_pixels(20 + i, 30, i)) for i in range(12)]


def _tar(members: Sequence[tuple[str, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def _pairs(count: int, label=lambda i: str(i % 3).encode(), extension: str = "cls"):
    members = []
    for i in range(count):
        members += [(f"a{i:02d}.jpg", IMAGES[i]), (f"a{i:02d}.{extension}", label(i))]
    return members


def _folder(tmp_path: Path, *tars: bytes) -> Path:
    folder = tmp_path / "tars"
    folder.mkdir()
    for number, data in enumerate(tars):
        (folder / f"part-{number}.tar").write_bytes(data)
    return folder


def _labels(manifest: ShardManifest) -> list[int]:
    samples = ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))
    return [sample.label for sample in samples]


def _account(manifest: ShardManifest) -> dict:
    return manifest.facts["account"]


def test_members_of_a_sample_need_not_be_neighbours(tmp_path):
    members = sorted(_pairs(6), key=lambda member: member[0].endswith(".cls"))
    assert _labels(index_tars(_folder(tmp_path, _tar(members)))) == [0, 1, 2, 0, 1, 2]


def test_numbers_between_dots_belong_to_the_name(tmp_path):
    members = [(f"0.{i:03d}.jpg", IMAGES[i]) for i in range(12)]
    members += [(f"0.{i:03d}.cls", b"%d" % (i % 2)) for i in range(12)]
    assert sorted(_labels(index_tars(_folder(tmp_path, _tar(members))))) == [0] * 6 + [1] * 6


def test_dots_in_folders_do_not_split(tmp_path):
    members = [(f"v1.0/{name}", data) for name, data in _pairs(6)]
    assert _labels(index_tars(_folder(tmp_path, _tar(members)))) == [0, 1, 2, 0, 1, 2]


def test_archives_one_behind_the_other_are_read_to_the_end(tmp_path):
    both = _tar(_pairs(6)) + _tar(_pairs(6, lambda _: b"2"))
    manifest = index_tars(_folder(tmp_path, both))
    assert _labels(manifest) == [0, 1, 2, 0, 1, 2, *[2] * 6]
    assert _account(manifest)["seen"] == 24


@pytest.mark.parametrize("cut", ["between", "inside"])
def test_a_tail_of_zeros_is_an_interrupted_download(tmp_path, cut):
    large = [(f"a{i}.jpg", IMAGES[i] + bytes(6000)) for i in range(8)]
    data = _tar(large)
    (tmp_path / "whole.tar").write_bytes(data)
    member = scan_tar(tmp_path / "whole.tar", "whole")[3]
    keep = member.offset - 512 if cut == "between" else member.offset + 300
    folder = _folder(tmp_path, data[:keep] + bytes(len(data) - keep))
    with pytest.raises(DataError, match=r"part-0\.tar ends in \d+ zero bytes"):
        index_tars(folder, max_bad_samples=9)


def test_a_hole_of_zeros_is_an_interrupted_download(tmp_path):
    data = bytearray(_tar([(f"a{i}.jpg", IMAGES[i] + bytes(6000)) for i in range(8)]))
    (tmp_path / "whole.tar").write_bytes(data)
    members = scan_tar(tmp_path / "whole.tar", "whole")
    first, last = members[2].offset - 512, members[4].offset - 512
    data[first:last] = bytes(last - first)
    with pytest.raises(DataError, match=rf"zero bytes at byte {first} where data was"):
        index_tars(_folder(tmp_path, bytes(data)), max_bad_samples=9)


@pytest.mark.timeout(20)
def test_a_header_with_an_endless_number_is_refused_at_once(tmp_path):
    """Tarfile's pattern would take hours for it (CVE-2024-6232)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.jpg")
        info.size, info.pax_headers = len(IMAGES[0]), {"comment": "9" * 100_000}
        tar.addfile(info, io.BytesIO(IMAGES[0]))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="number of 300 digits or more"):
        scan_tar(tmp_path / "a.tar", "a.tar")


def test_links_lead_to_the_bytes_they_stand_for(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(3):
        (source / f"a{i}.jpg").write_bytes(IMAGES[i])
        (source / f"b{i}.jpg").hardlink_to(source / f"a{i}.jpg")
        (source / f"c{i}.jpg").symlink_to(f"a{i}.jpg")
    (source / "d.jpg").symlink_to("/nowhere/x.jpg")
    (tmp_path / "tars").mkdir()
    target = tmp_path / "tars" / "x.tar"
    subprocess.run(["tar", "-cf", target, "--sort=name", "-C", source, "."], check=True)
    manifest = index_tars(tmp_path / "tars", max_bad_samples=1)
    assert manifest.num_samples == 9
    assert _account(manifest)["lost"] == {"it is a link to what the tar does not hold": 1}


def test_sparse_members_are_named(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jpg").write_bytes(IMAGES[0])
    with (source / "b.jpg").open("wb") as file:
        file.write(IMAGES[1])
        file.truncate(1 << 20)
    (tmp_path / "tars").mkdir()
    target = tmp_path / "tars" / "x.tar"
    subprocess.run(["tar", "-cSf", target, "-C", source, "."], check=True)
    manifest = index_tars(tmp_path / "tars", max_bad_samples=1)
    assert manifest.num_samples == 1
    assert "sparse member" in (tmp_path / "tars" / "quarantine.jsonl").read_text()


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_flavours_of_tar_and_files_of_the_system(tmp_path, tar_format):
    members = [("./dir ü/" + "x" * 60 + name, data) for name, data in _pairs(6)]
    extra = [("./dir ü/._a00.jpg", b"mac"), ("./.DS_Store", b"1"), ("__MACOSX/a.jpg", b"2")]
    manifest = index_tars(_folder(tmp_path, _tar(extra + members, tar_format)))
    assert _labels(manifest) == [0, 1, 2, 0, 1, 2]
    assert sum(_account(manifest)["passed_over"].values()) == 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.tar.gz", b"\x1f\x8b", "compressed tars"),
        ("a.tgz", b"\x1f\x8b", "compressed tars"),
        ("a.tar", b"\x1f\x8b\x08" + bytes(600), "compressed by gzip"),
        ("a.tar", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("a.tar", b"<!DOCTYPE html><html>403</html>", "HTML page"),
        ("a.tar", b"", r"is empty \(0 bytes\)"),
        ("index.json", b"{}", r"holds no \.tar files"),
        ("shard.00000.mds", b"", "MosaicML Streaming"),
        ("chunk-0-0.bin", b"", "litdata"),
        ("a.parquet", b"", "ifsq data pack"),
        ("a.h5", b"", r"an HDF5 file cannot be read: write its arrays \(h5py"),
        ("train-00000-of-00008", b"", "TFRecord.*tf.data"),
        ("data.mdb", b"", "LMDB database.*ShardWriter"),
        ("a.beton", b"", "FFCV"),
        ("data_batch_1", b"", "CIFAR.*torchvision"),
        ("a.zip", b"", "compressed archives: unpack"),
        ("index.csv", b"", "tables cannot be read"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path, name, data, message):
    folder = _folder(tmp_path)
    (folder / name).write_bytes(data)
    with pytest.raises(UserError, match=message):
        index_tars(folder)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_classes": 9}, "num_classes: None -> 9"),
        ({"label_key": "txt"}, "label_key: None -> txt"),
        ({"classes": ["a", "b", "c"]}, "class_map: None -> "),
    ],
)
def test_an_index_with_other_settings_is_not_taken_for_this_one(tmp_path, changed, message):
    folder = _folder(tmp_path, _tar(_pairs(4)))
    assert index_tars(folder).digest == index_tars(folder).digest
    with pytest.raises(UserError, match=f"already holds another dataset .*: {message}"):
        index_tars(folder, **changed)


def test_files_beside_the_tars_are_passed_over(tmp_path):
    folder = _folder(tmp_path, _tar([]), _tar(_pairs(4)))
    (folder / "._part-1.tar").write_bytes(b"mac")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "x.tar").write_bytes(b"junk")
    (folder / "part-1.tar.idx").write_bytes(b"1")
    (folder / "wids.json").write_bytes(b"{}")
    manifest = index_tars(folder)
    assert manifest.num_samples == 4
    assert "2 hidden" in " ".join(_account(manifest)["notes"])


def test_of_several_images_the_exact_extension_or_the_key_wins(tmp_path):
    masks = [(name.replace(".cls", ".seg.png"), IMAGES[9]) for name, _ in _pairs(3)[1::2]]
    folder = _folder(tmp_path, _tar(_pairs(3) + masks))
    assert _labels(index_tars(folder)) == [0, 1, 2]
    pairs = [(f"k{i}.{side}.png", IMAGES[i]) for i in range(3) for side in ("left", "right")]
    (tmp_path / "b").mkdir()
    other = _folder(tmp_path / "b", _tar(pairs))
    with pytest.raises(UserError, match="--image-key"):
        index_tars(other, max_bad_samples=9)
    assert index_tars(other, image_key="left.png").num_samples == 3


def test_the_same_key_twice_is_two_samples(tmp_path):
    twice = [*_pairs(1), ("b.jpg", IMAGES[5]), ("b.cls", b"1"), *_pairs(1)]
    manifest = index_tars(_folder(tmp_path, _tar(twice)))
    samples = ImageReader(manifest).read(np.arange(3))
    assert [sample.key for sample in samples] == ["a00", "b", "a00__2"]


def test_a_sample_cut_by_the_end_of_a_tar_keeps_its_label(tmp_path):
    members = _pairs(6)
    folder = _folder(tmp_path, _tar(members[:7]), _tar(members[7:]))
    manifest = index_tars(folder)
    assert _labels(manifest) == [0, 1, 2, 0, 1, 2]
    assert _account(manifest)["labels_without_image"] == 0


def test_every_image_lost_counts_and_nothing_is_published_beyond_the_budget(tmp_path):
    pairs = [(f"k{i}.{side}.png", IMAGES[i]) for i in range(3) for side in ("left", "right")]
    folder = _folder(tmp_path, _tar([*_pairs(2), *pairs]))
    with pytest.raises(DataError, match=r"6 (bad samples|images lost)"):
        index_tars(folder, max_bad_samples=5)
    assert not (folder / "manifest.json").exists()
    assert index_tars(folder, max_bad_samples=6).facts["num_bad_samples"] == 6


def test_images_without_a_label_count_where_others_have_one(tmp_path):
    folder = _folder(tmp_path, _tar([*_pairs(4), ("x.jpg", IMAGES[7]), ("y.jpg", IMAGES[8])]))
    with pytest.raises(DataError, match="2 images without a label"):
        index_tars(folder, max_bad_samples=1)
    assert _account(index_tars(folder, max_bad_samples=2))["unlabelled"] == 2


def test_a_class_keeps_its_number_without_a_usable_image(tmp_path):
    members = [("a.jpg", b"junk"), ("a.cls", b"ant"), ("b.jpg", IMAGES[0]), ("b.cls", b"bee")]
    manifest = index_tars(_folder(tmp_path, _tar(members)), max_bad_samples=1)
    assert (manifest.classes, _labels(manifest)) == (["ant", "bee"], [1])


def _json(field: str, values: Sequence):
    return lambda i: json.dumps({field: values[i % len(values)]}).encode()


@pytest.mark.parametrize(
    ("extension", "label", "expected"),
    [
        ("json", _json("label", [0.0, 1.0, 2.0]), [0, 1, 2]),
        ("json", _json("label", ["0", "1", "2"]), [0, 1, 2]),
        ("json", _json("label", [False, True]), [0, 1]),
        ("json", _json("cls", [[0], [1], [2]]), [0, 1, 2]),
        ("cls", lambda i: b"\xef\xbb\xbf%d\r\n" % (i % 3), [0, 1, 2]),
        ("cls", lambda i: (b'"cat"', b'"dog"')[i % 2], [0, 1]),
        ("cls", lambda i: b"%d.0" % (i % 3), [0, 1, 2]),
        ("txt", lambda i: (b"cat", b"dog")[i % 2], [0, 1]),
    ],
)
def test_labels_say_the_same_in_any_writing(tmp_path, extension, label, expected):
    manifest = index_tars(_folder(tmp_path, _tar(_pairs(6, label, extension))))
    assert _labels(manifest) == (expected * 3)[:6]


@pytest.mark.parametrize("key", ["class_id", "index", "info.id"])
def test_a_label_elsewhere_is_found_by_its_key_and_missed_aloud(tmp_path, key):
    field = {"class_id": 1} if key == "class_id" else {"info": {"id": 1}}
    member = ("a.index", b"1") if key == "index" else ("a.json", json.dumps(field).encode())
    data = _tar([("a.jpg", IMAGES[0]), member])
    assert _labels(index_tars(_folder(tmp_path, data), label_key=key)) == [1]
    (tmp_path / "b").mkdir()
    account = _account(index_tars(_folder(tmp_path / "b", data)))
    assert "--label-key" in " ".join(account["notes"])
    assert account["unlabelled"] == 1


def test_captions_are_no_classes(tmp_path):
    captions = _pairs(12, lambda i: f"a photo number {i} of a cat".encode(), "txt")
    manifest = index_tars(_folder(tmp_path, _tar(captions)))
    assert (manifest.classes, set(_labels(manifest))) == ([], {-1})
    assert "captions" in " ".join(_account(manifest)["notes"])


def test_numbers_and_names_together_are_refused(tmp_path):
    mixed = _pairs(4, lambda i: (b"0", b"cat")[i % 2])
    with pytest.raises(UserError, match=r"are numbers .* are names"):
        index_tars(_folder(tmp_path, _tar(mixed)))


def test_one_wild_label_is_refused(tmp_path):
    folder = _folder(tmp_path, _tar(_pairs(4, lambda i: (b"0", b"1", b"999999")[i % 3])))
    with pytest.raises(UserError, match=r"label 999999 would make 1000000 classes.*--num-classes"):
        index_tars(folder)
    manifest = index_tars(folder, num_classes=2, max_bad_samples=1)
    assert (_labels(manifest), manifest.classes) == ([0, 1, 0], ["0", "1"])


def test_labels_from_one_leave_class_zero_empty_aloud(tmp_path):
    manifest = index_tars(_folder(tmp_path, _tar(_pairs(4, lambda i: b"%d" % (i + 1)))))
    assert (_labels(manifest), len(manifest.classes)) == ([1, 2, 3, 4], 5)
    assert _account(manifest)["class_counts"] == [0, 1, 1, 1, 1]
