"""For any image, view, dataset and rows: what must hold of views, manifests and indices."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.manifest import (
    IndexRow,
    ShardEntry,
    ShardManifest,
    content_digest,
    decode_index,
    encode_index,
    manifest_digest,
    publish_manifest,
)
from data_pipelines.storage.local import LocalStorage
from data_pipelines.views import VIEW_KINDS, ViewSpec, view_geometry

SIDES = st.integers(1, 3000)
KINDS = sorted(set(VIEW_KINDS) - {"raw"})


@st.composite
def requests(draw: st.DrawFn) -> tuple[ViewSpec, dict[str, Any]]:
    """A view kind and a batch of any images."""
    side = st.integers(1, 64)
    size = draw(st.one_of(side, st.tuples(side, side)))
    spec = ViewSpec.from_dict({"kind": draw(st.sampled_from(KINDS)), "image_size": size})
    count = draw(st.integers(1, 6))
    numbers = {
        "sample_ids": st.integers(0, 2**40),
        "views": st.integers(0, spec.num_views - 1),
        "heights": SIDES,
        "widths": SIDES,
    }
    batch = {
        name: np.array(draw(st.lists(values, min_size=count, max_size=count)))
        for name, values in numbers.items()
    }
    return spec, {
        "seed": draw(st.integers(0, 2**63 - 1)),
        "epoch": draw(st.integers(0, 99)),
        **batch,
    }


@settings(max_examples=60)
@given(requests())
def test_a_view_lies_within_its_image_and_depends_on_its_own_sample_only(
    request: tuple[ViewSpec, dict[str, Any]],
) -> None:
    spec, batch = request
    whole = view_geometry(spec, **batch)
    assert np.all(whole.tops >= 0)
    assert np.all(whole.lefts >= 0)
    assert np.all(whole.tops + spec.size[0] <= whole.resized_heights)
    assert np.all(whole.lefts + spec.size[1] <= whole.resized_widths)
    boxes = whole.boxes
    assert np.all(boxes[:, :2] >= 0)
    assert np.all(boxes[:, 2] <= batch["widths"] + 1e-9)
    assert np.all(boxes[:, 3] <= batch["heights"] + 1e-9)
    for i in range(len(whole)):
        one: dict[str, Any] = {
            k: v[i : i + 1] if isinstance(v, np.ndarray) else v for k, v in batch.items()
        }
        alone, taken = view_geometry(spec, **one), whole.take([i])
        np.testing.assert_array_equal(alone.boxes, taken.boxes)
        assert alone.flips.tolist() == taken.flips.tolist()


@pytest.mark.parametrize("kind", sorted(VIEW_KINDS))
def test_a_view_says_all_of_itself(kind: str) -> None:
    spec = ViewSpec.from_dict({"kind": kind, "image_size": 32})
    assert ViewSpec.from_dict(spec.to_dict()) == spec
    other = ViewSpec.from_dict({**spec.to_dict(), "image_size": 33})
    assert other != spec
    assert other.to_dict() != spec.to_dict()


WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12)
HEX = st.text("0123456789abcdef", min_size=64, max_size=64)
ROWS = st.lists(
    st.builds(
        IndexRow,
        key=WORDS,
        offset=st.integers(0, 2**40),
        size=st.integers(1, 2**31),
        label=st.integers(-1, 999_999),
        height=st.integers(1, 2**15),
        width=st.integers(1, 2**15),
        crc32=st.integers(0, 2**32 - 1),
        format=st.sampled_from(["jpeg", "png", "webp"]),
    ),
    max_size=6,
)


@settings(max_examples=30)
@given(ROWS, st.dictionaries(WORDS, st.integers() | WORDS, max_size=3), st.data())
def test_an_index_gives_back_its_rows_and_its_digest_knows_their_order(
    rows: list[IndexRow], metadata: dict[str, Any], data: st.DataObject
) -> None:
    found = decode_index(encode_index(rows, metadata))
    assert [IndexRow(**row) for row in found.table.to_pylist()] == rows
    assert found.metadata == metadata
    shuffled = data.draw(st.permutations(rows))
    assert (content_digest(shuffled) == content_digest(rows)) == (shuffled == rows)
    if rows:
        changed = [replace(rows[0], label=rows[0].label + 1), *rows[1:]]
        assert content_digest(changed) != content_digest(rows)


@st.composite
def datasets(draw: st.DrawFn) -> list[ShardEntry]:
    """Shards of different sizes."""
    sizes = draw(st.lists(st.integers(1, 50), min_size=1, max_size=6))
    return [
        ShardEntry(
            f"{i}.tar", size, 512 * size, draw(HEX), f"index/{i}.arrow", draw(HEX), draw(HEX)
        )
        for i, size in enumerate(sizes)
    ]


@settings(max_examples=20)
@given(datasets(), st.lists(WORDS, max_size=4, unique=True))
def test_a_manifest_gives_back_its_shards_and_finds_every_sample(
    shards: list[ShardEntry], classes: list[str]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        publish_manifest(LocalStorage(folder), shards, classes=classes)
        found = ShardManifest.open(folder)
    assert found.shards() == shards
    assert list(found.classes) == classes
    assert found.digest == manifest_digest(shards, classes)
    places = [(i, row) for i, shard in enumerate(shards) for row in range(shard.num_samples)]
    assert found.num_samples == len(places)
    numbers, rows = found.locate(np.arange(len(places)))
    assert list(zip(numbers.tolist(), rows.tolist(), strict=True)) == places
    assert [found.first_id(i) for i in range(len(shards))] == [
        places.index((i, 0)) for i in range(len(shards))
    ]
