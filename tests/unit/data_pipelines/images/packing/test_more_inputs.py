"""More inputs as people have them: each one is read right, or refused by what it is."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.images.packing.classes import read_class_map
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.pack import pack_folder, pack_parquet
from data_pipelines.images.packing.parquet_files import ParquetColumns
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import encode, smooth_pixels

IMAGES = [encode(smooth_pixels(20 + i, 30, i), "PNG") for i in range(6)]
NAMES = ["cat", "dog", "owl"]


def _found(manifest: ShardManifest) -> list[tuple[int, str | None]]:
    """(which of IMAGES, name of its class), sorted."""
    samples = ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))
    return sorted(
        (IMAGES.index(bytes(s.data)), manifest.classes[s.label] if s.label >= 0 else None)
        for s in samples
    )


def _tar(folder: Path, *members: tuple[str, bytes], name: str = "a.tar", **facts) -> Path:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / name, "w") as tar:
        for member, data in members:
            info = tarfile.TarInfo(member)
            info.size = len(data)
            for fact, value in facts.items():
                setattr(info, fact, value)
            tar.addfile(info, io.BytesIO(data))
    return folder


def _labelled(labels: list[bytes], extension: str) -> list[tuple[str, bytes]]:
    members = []
    for i, label in enumerate(labels):
        members += [(f"{i}.png", IMAGES[i]), (f"{i}.{extension}", label)]
    return members


def _npy(value) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array(value))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "labels",
    [
        [b"0.000000000000000000e+00", b"1.000000000000000000e+00", b"2.000000000000000000e+00"],
        ["\u200b0".encode(), b"1\0\0", b"+2"],
    ],
    ids=["savetxt", "unseen"],
)
def test_labels_as_other_programs_write_them(tmp_path, labels):
    manifest = index_tars(_tar(tmp_path / "in", *_labelled(labels, "cls")))
    assert _found(manifest) == [(0, "0"), (1, "1"), (2, "2")]


def test_arrays_of_one_number_are_labels_where_asked_for(tmp_path):
    labels = _labelled([_npy(0), _npy([1]), _npy(np.float32(2))], "npy")
    manifest = index_tars(_tar(tmp_path / "in", *labels), label_key="npy")
    assert _found(manifest) == [(0, "0"), (1, "1"), (2, "2")]
    several = _tar(tmp_path / "b", *_labelled([_npy([0, 1, 0])], "npy"))
    with pytest.raises(UserError, match="3 values"):
        index_tars(several, label_key="npy", max_bad_samples=9)


@pytest.mark.parametrize("label", [b"\1\0\0\0\0\0\0\0", b"\0\0\0\0"])
def test_numbers_as_bytes_are_no_names(tmp_path, label):
    with pytest.raises(UserError, match="is not text: write numbers as digits"):
        index_tars(_tar(tmp_path / "in", *_labelled([label], "cls")), max_bad_samples=9)


@pytest.mark.parametrize(
    "texts",
    [
        [f"a photo\nof thing {i}".encode() for i in range(6)],
        [f"café numéro {i}".encode("latin-1") for i in range(6)],
        [b"%d " % i + b"word " * 300_000 for i in range(6)],
    ],
    ids=["lines", "latin-1", "long"],
)
def test_captions_of_any_form_lose_no_image(tmp_path, texts):
    manifest = index_tars(_tar(tmp_path / "in", *_labelled(texts, "txt")))
    assert _found(manifest) == [(i, None) for i in range(6)]


def test_what_is_between_dots_is_the_name_where_each_has_a_label(tmp_path):
    members = [(f"pic.{word}.png", IMAGES[i]) for i, word in enumerate(NAMES)]
    members += [(f"pic.{word}.cls", word.encode()) for word in NAMES]
    assert _found(index_tars(_tar(tmp_path / "in", *members))) == list(enumerate(NAMES))


def test_a_key_twice_in_a_row_is_two_samples(tmp_path):
    members = [("a.png", IMAGES[0]), ("a.cls", b"0"), ("a.png", IMAGES[1]), ("a.cls", b"1")]
    assert _found(index_tars(_tar(tmp_path / "in", *members))) == [(0, "0"), (1, "1")]


@pytest.mark.parametrize("path", ["d//0", "./d/./0", "d/0"])
def test_paths_are_compared_in_their_plain_form(tmp_path, path):
    members = [(f"{path}.png", IMAGES[0]), ("d/0.cls", b"0")]
    assert _found(index_tars(_tar(tmp_path / "in", *members))) == [(0, "0")]


def test_members_of_unknown_type_are_files_and_pipes_are_lost(tmp_path):
    assert len(_found(index_tars(_tar(tmp_path / "a", ("0.png", IMAGES[0]), type=b"Z")))) == 1
    _tar(tmp_path / "b", ("p.png", b""), type=tarfile.FIFOTYPE)
    _tar(tmp_path / "b", ("0.png", IMAGES[0]), name="b.TAR")
    manifest = index_tars(tmp_path / "b", max_bad_samples=1)
    assert manifest.facts["account"]["lost"] == {"it is a pipe or a device, not a file": 1}
    assert manifest.num_samples == 1


def test_a_tar_of_class_folders_says_so(tmp_path):
    members = [(f"{name}/0.png", IMAGES[i]) for i, name in enumerate(NAMES)]
    manifest = index_tars(_tar(tmp_path / "in", *members))
    assert "3 folders inside the tars (such as 'cat')" in manifest.facts["account"]["notes"][0]


def test_labels_that_find_no_image_count_as_lost(tmp_path):
    members = [("images/0.png", IMAGES[0]), ("labels/0.cls", b"0")]
    with pytest.raises(DataError, match="1 images without a label"):
        index_tars(_tar(tmp_path / "in", *members))


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"070701", "cpio"), (b"!<arch>\n", "an ar archive"), (b"\x5d\0\0\x80", "by lzma")],
)
def test_other_archives_are_called_by_their_name(tmp_path, head, name):
    (tmp_path / "a.tar").write_bytes(head + b"0" * 2000)
    with pytest.raises(DataError, match=name):
        index_tars(tmp_path)


def _parquet(folder: Path, labels, name: str = "a.parquet", rows: slice = slice(0, 6)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": pa.array(IMAGES[rows])}
    pq.write_table(pa.table(columns | ({} if labels is None else {"label": labels})), path)
    return folder


TYPES = {
    "dictionary": pa.array(NAMES * 2).dictionary_encode(),
    "string_view": pa.array(NAMES * 2).cast(pa.string_view()),
    "large_string": pa.array(NAMES * 2, pa.large_string()),
    "unused names": pa.DictionaryArray.from_arrays(
        pa.array([2, 0, 1] * 2, pa.int8()), pa.array(["dog", "owl", "cat", "never"])
    ),
}


@pytest.mark.parametrize("kind", TYPES)
def test_names_in_columns_of_any_type(tmp_path, kind):
    manifest = pack_parquet(_parquet(tmp_path / "in", TYPES[kind]), tmp_path / "out")
    assert _found(manifest) == [(i, NAMES[i % 3]) for i in range(6)]


NUMBERS = {
    "bool": (pa.array([False, True, None] * 2), ["0", "1", None]),
    "float with nulls": (pa.array([0.0, 1.0, None] * 2), ["0", "1", None]),
    "float with nan": (pa.array([0.0, 1.0, float("nan")] * 2), ["0", "1", None]),
    "uint8": (pa.array([0, 1, 2] * 2, pa.uint8()), ["0", "1", "2"]),
    "dictionary": (pa.array([0, 1, 2] * 2).dictionary_encode(), ["0", "1", "2"]),
    "no label": (pa.array([0, -1, -100] * 2), ["0", None, None]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_in_columns_of_any_type(tmp_path, kind):
    column, expected = NUMBERS[kind]
    manifest = pack_parquet(_parquet(tmp_path / "in", column), tmp_path / "out")
    assert _found(manifest) == [(i, expected[i % 3]) for i in range(6)]


IMAGE_TYPES = [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())]


@pytest.mark.parametrize("kind", IMAGE_TYPES, ids=str)
def test_images_in_columns_of_any_type(tmp_path, kind):
    column = pa.array(IMAGES)
    column = column.dictionary_encode() if pa.types.is_dictionary(kind) else column.cast(kind)
    (tmp_path / "in").mkdir()
    table = pa.table({"image": column, "label": pa.array([0, 1, 2] * 2)})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    manifest = pack_parquet(tmp_path / "in", tmp_path / "out")
    assert _found(manifest) == [(i, str(i % 3)) for i in range(6)]


def test_a_negative_number_is_no_label_in_disguise(tmp_path):
    with pytest.raises(UserError, match="label -2 is negative"):
        pack_parquet(_parquet(tmp_path / "in", pa.array([0, 1, -2] * 2)), tmp_path / "out")


def test_hive_folders_are_labels(tmp_path):
    folders = ["label=golden%20eagle", "year=2020/label=cat", "label=__HIVE_DEFAULT_PARTITION__"]
    for i, folder in enumerate(folders):
        _parquet(tmp_path / "in", None, f"{folder}/0.parquet", slice(i, i + 1))
    manifest = pack_parquet(tmp_path / "in", tmp_path / "out")
    assert _found(manifest) == [(0, "golden eagle"), (1, "cat"), (2, None)]


@pytest.mark.parametrize(
    "names",
    [
        ("Train.parquet", "Test.parquet"),
        ("x_train.pq", "x_val.pq"),
        ("split=train/0.parquet", "split=test/0.parquet"),
    ],
)
def test_splits_are_not_mixed(tmp_path, names):
    for name in names:
        _parquet(tmp_path / "in", pa.array([0, 1, 2] * 2), name)
    with pytest.raises(UserError, match="holds the splits"):
        pack_parquet(tmp_path / "in", tmp_path / "out")


def test_a_hugging_face_cache_is_read_through_its_links(tmp_path):
    root = tmp_path / "datasets--a--b"
    _parquet(root / "blobs", pa.array([0, 1, 2] * 2), "ab12")
    for revision in ("1" * 40, "2" * 40):
        data = root / "snapshots" / revision / "data"
        data.mkdir(parents=True)
        (data / "train-0.parquet").symlink_to("../../../blobs/ab12")
        (data / "._train-0.parquet").write_bytes(b"\0\5\x16\7")
        if revision[0] == "1":
            assert len(_found(pack_parquet(tmp_path, tmp_path / "out"))) == 6
    with pytest.raises(UserError, match="2 revisions"):
        pack_parquet(tmp_path, tmp_path / "other")


def test_download_rows_without_an_image_are_passed_over(tmp_path):
    rows = {"url": ["u"] * 3, "key": ["0", "1", "2"], "status": ["success", "failed", "success"]}
    (tmp_path / "in").mkdir()
    images = pa.array([IMAGES[0], None, IMAGES[2]])
    pq.write_table(pa.table({**rows, "jpg": images}), tmp_path / "in" / "00000.parquet")
    manifest = pack_parquet(tmp_path / "in", tmp_path / "out")
    assert _found(manifest) == [(0, None), (2, None)]
    assert sum(manifest.facts["account"]["passed_over"].values()) == 1


def test_columns_and_links_that_are_wrong_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    labels = pa.array([0] * 6)
    twice = pa.Table.from_arrays(
        [pa.array(IMAGES), labels, labels], names=["image", "label", "label"]
    )
    pq.write_table(twice, tmp_path / "in" / "a.parquet")
    with pytest.raises(UserError, match="2 columns 'label'"):
        pack_parquet(tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "a.parquet").unlink()
    (tmp_path / "in" / "a.parquet").symlink_to("../blobs/none")
    with pytest.raises(UserError, match="link to a file that is not there"):
        pack_parquet(tmp_path / "in", tmp_path / "out", columns=ParquetColumns())


def test_linked_shards_are_indexed_and_read(tmp_path):
    _tar(tmp_path / "disk", *_labelled([b"0", b"1"], "cls"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tar").symlink_to(tmp_path / "disk" / "a.tar")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "disk")
    manifest = index_tars(tmp_path / "in", tmp_path / "out")
    assert _found(manifest) == [(0, "0"), (0, "0"), (1, "1"), (1, "1")]


@pytest.mark.parametrize(
    ("splits", "refused"),
    [
        (("ILSVRC2012_train", "ILSVRC2012_val"), True),
        (("train_set", "test_set"), True),
        (("train", "val", "extra"), True),
        (("steam train", "bullet train"), False),
        (("train", "bus"), False),
        (("test tube", "beaker"), False),
    ],
)
def test_split_folders_by_any_name(tmp_path, splits, refused):
    for i, split in enumerate(splits):
        (tmp_path / "in" / split).mkdir(parents=True)
        (tmp_path / "in" / split / "a.png").write_bytes(IMAGES[i])
    if refused:
        with pytest.raises(UserError, match="holds the splits"):
            pack_folder(tmp_path / "in", tmp_path / "out")
    else:
        assert len(pack_folder(tmp_path / "in", tmp_path / "out").classes) == len(splits)


def test_folders_of_the_system_are_no_classes(tmp_path):
    for name in ("cat", "$RECYCLE.BIN", "cat/@eaDir", "lost+found"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "a.png").write_bytes(IMAGES[0])
    manifest = pack_folder(tmp_path / "in", tmp_path / "out")
    assert (manifest.classes, manifest.num_samples) == (["cat"], 1)


@pytest.mark.parametrize(
    "text",
    [
        "b c\t1\na\t0\nn1\t2\n", "b c,1\na,0\nn1,2\n", "1: b c\n0: a\n2: n1\n",
        "# classes\n'a'\n\"b c\"\nn1\n", "b c 1\r\na 0\r\nn1 2\r\n",
        json.dumps({"categories": [{"id": 1, "name": "b c"}, {"id": 0, "name": "a"},
                                   {"id": 2, "name": "n1"}]}),
    ],
)  # fmt: skip
def test_class_maps_say_numbers_in_many_ways(tmp_path, text):
    (tmp_path / "map.txt").write_text(text)
    assert dict(read_class_map(tmp_path / "map.txt").numbers) == {"a": 0, "b c": 1, "n1": 2}
