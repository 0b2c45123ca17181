"""Class maps, smaller copies, and shards made in any order."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.errors import UserError
from data_pipelines.images.decoders.pixels import decode_rgb
from data_pipelines.images.packing.classes import read_class_map
from data_pipelines.images.packing.index import index_tars
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.packing.resize import ResizeSpec
from data_pipelines.images.packing.shards import cut_shards
from data_pipelines.images.reader import ImageReader
from data_pipelines.manifest import ShardManifest
from tests.support.image_samples import encode, smooth_pixels


def _samples(manifest: ShardManifest):
    return ImageReader(manifest, verify=True).read(np.arange(manifest.num_samples))


def _backwards(function: Callable, works: Iterable) -> Iterator:
    """A map_shards that makes the shards in another order, as a cluster might."""
    shuffled = list(works)
    random.Random(3).shuffle(shuffled)
    return map(function, shuffled)


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_class_map_numbers_the_folders(class_folder, tmp_path):
    lines = "class2 the third\nclass0\nclass1 first, or second\nclass9 empty\n"
    class_map = read_class_map(_write(tmp_path / "map.txt", lines))
    manifest = pack_folder(class_folder, tmp_path / "packed", class_map=class_map)
    assert manifest.classes == ["the third", "class0", "first, or second", "class9 empty"[7:]]
    labels = {sample.key.split("/")[0]: sample.label for sample in _samples(manifest)}
    assert labels == {"class2": 0, "class0": 1, "class1": 2}


@pytest.mark.parametrize("form", ["{n} name{n}", "{n}\tname{n}", "{n}: name{n}", "name{n} {n}"])
def test_numbered_lines_are_taken_by_their_numbers(tmp_path, form):
    """In any order, and beyond nine: as text "10" would come before "2"."""
    order = random.Random(0).sample(range(12), 12)
    lines = "\n".join(form.format(n=n) for n in order)
    class_map = read_class_map(_write(tmp_path / "map.txt", lines))
    assert class_map.numbers == {f"name{n}": n for n in range(12)}
    assert list(class_map.names) == [f"name{n}" for n in range(12)]


def test_class_map_of_json_may_merge_classes(class_folder, tmp_path):
    numbers = {"class0": 0, "class1": 1, "class2": 0}
    class_map = read_class_map(_write(tmp_path / "map.json", json.dumps(numbers)))
    manifest = pack_folder(class_folder, tmp_path / "packed", class_map=class_map)
    assert manifest.classes == ["class0", "class1"]
    labels = {sample.key.split("/")[0]: sample.label for sample in _samples(manifest)}
    assert labels == numbers


def test_folder_that_the_class_map_lacks_is_named(class_folder, tmp_path):
    class_map = read_class_map(_write(tmp_path / "map.json", '["class0", "class1"]'))
    with pytest.raises(UserError, match=r"class 'class2' is not in the class map.*2 classes"):
        pack_folder(class_folder, tmp_path / "packed", class_map=class_map)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.txt", "", "is empty"),
        ("m.txt", "a\nb\na\n", "names the class 'a' twice"),
        ("m.json", '{"a": 0, "b": 2}', "0 to 2 with gaps"),
        ("m.json", "[1, 2]", "neither a list of names nor an object"),
        ("m.json", "{", "damaged or not JSON"),
    ],
)
def test_unusable_class_maps_say_why(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_class_map(_write(tmp_path / name, text))


def test_large_images_are_stored_smaller_and_small_ones_untouched(tmp_path):
    folder = tmp_path / "source" / "c"
    folder.mkdir(parents=True)
    large, small = smooth_pixels(300, 200), encode(smooth_pixels(90, 64, 1))
    (folder / "large.png").write_bytes(encode(large, "PNG"))
    (folder / "small.jpg").write_bytes(small)
    manifest = pack_folder(
        tmp_path / "source", tmp_path / "packed", resize=ResizeSpec(64, quality=98), seed=None
    )
    first, second = _samples(manifest)
    assert (first.height, first.width, bytes(first.data[:3])) == (96, 64, b"\xff\xd8\xff")
    expected = Image.fromarray(large).resize((64, 96), Image.Resampling.BICUBIC)
    difference = np.abs(decode_rgb(first.data).astype(int) - np.asarray(expected))
    assert difference.mean() < 1.5
    assert bytes(second.data) == small


@pytest.mark.parametrize("options", [{"short_side": 0}, {"short_side": 9, "quality": 101}])
def test_impossible_sizes_are_refused(options):
    with pytest.raises(UserError, match="is not allowed; use 1"):
        ResizeSpec(**options)


def test_resizing_is_part_of_what_a_dataset_is(class_folder, tmp_path):
    pack_folder(class_folder, tmp_path / "packed")
    with pytest.raises(UserError, match="already holds another dataset"):
        pack_folder(class_folder, tmp_path / "packed", resize=ResizeSpec(30))


@pytest.mark.parametrize("resize", [None, ResizeSpec(32)])
def test_order_of_making_shards_does_not_matter(class_folder, tmp_path, tree_bytes, resize):
    (class_folder / "class1" / "broken.jpg").write_bytes(b"junk" * 400)
    options = {"shard_bytes": 3_000, "resize": resize, "max_bad_samples": 1}
    one = pack_folder(class_folder, tmp_path / "one", **options)
    other = pack_folder(class_folder, tmp_path / "other", map_shards=_backwards, **options)
    assert one.num_shards > 3
    assert other.digest == one.digest
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "other")


def test_order_of_indexing_tars_does_not_matter(class_folder, tmp_path, tree_bytes):
    pack_folder(class_folder, tmp_path / "tars", shard_bytes=3_000)
    index_tars(tmp_path / "tars", tmp_path / "one")
    index_tars(tmp_path / "tars", tmp_path / "other", map_shards=_backwards)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "other")


def test_a_shard_of_only_bad_images_is_left_out(tmp_path):
    folder = tmp_path / "source" / "c"
    folder.mkdir(parents=True)
    for i in range(6):
        good = encode(smooth_pixels(40, 40, i))
        (folder / f"{i}.jpg").write_bytes(b"junk" * 500 if i in (2, 3) else good)
    options = {"shard_bytes": 4_000, "seed": None, "max_bad_samples": 2}
    manifest = pack_folder(tmp_path / "source", tmp_path / "packed", **options)
    assert [sample.key for sample in _samples(manifest)] == ["c/0", "c/1", "c/4", "c/5"]
    (tmp_path / "packed" / "manifest.json").unlink()
    again = pack_folder(tmp_path / "source", tmp_path / "packed", **options)
    assert (again.digest, again.facts["num_bad_samples"]) == (manifest.digest, 2)


def test_shards_are_cut_by_bytes():
    assert list(cut_shards([3, 3, 5, 9, 1, 1, 8, 2], 8)) == [
        range(2), range(2, 3), range(3, 4), range(4, 6), range(6, 7), range(7, 8)
    ]  # fmt: skip
