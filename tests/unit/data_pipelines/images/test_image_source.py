"""Batches of images: pure functions, bad samples replaced within a budget."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from data_pipelines.bad_samples import BadSample, ErrorBudget
from data_pipelines.errors import DataError, UserError
from data_pipelines.images.decoders.open import open_decoder
from data_pipelines.images.packing.pack import pack_folder
from data_pipelines.images.source import BatchRequest, ImageSource, MixedSource, Replacement
from data_pipelines.manifest import ShardManifest
from data_pipelines.views import AdmCenterView, AdmRandomView, CenterFlipView


def _source(manifest, spec=None, budget=None, seed=4) -> ImageSource:
    budget = budget or ErrorBudget(0)
    decoder = open_decoder("cpu", (32, 32), threads=2)
    return ImageSource(manifest, spec or AdmRandomView(32), decoder, budget, seed=seed)


def _damage(dataset_copy, sample_id: int) -> ShardManifest:
    """Overwrite an image with zeros, leaving tar and index as they are."""
    manifest = ShardManifest.open(dataset_copy)
    (shard,), (row,) = (a.tolist() for a in manifest.locate(np.array([sample_id])))
    path = dataset_copy / manifest.shard(shard).name
    data, rows = bytearray(path.read_bytes()), manifest.rows(shard)
    start = int(rows.offset[row])
    data[start : start + int(rows.size[row])] = bytes(int(rows.size[row]))
    path.write_bytes(data)
    return manifest


def test_batch_has_images_labels_and_keys(small_dataset):
    batch = _source(small_dataset).batch(np.array([3, 9, 0]))
    assert batch.images.shape == (3, 3, 32, 32)
    assert batch.images.dtype == torch.float32
    assert batch.images.min() >= -1
    assert batch.images.max() <= 1
    assert batch.labels.dtype == torch.int64
    classes = [small_dataset.classes[label] for label in batch.labels]
    assert [key.split("/")[0] for key in batch.keys] == classes
    assert batch.sample_ids.tolist() == [3, 9, 0]
    assert batch.replacements == []


def test_a_rank_with_nothing_to_do_gets_an_empty_batch(small_dataset):
    batch = _source(small_dataset).batch(np.array([], dtype=np.int64))
    assert batch.images.shape == (0, 3, 32, 32)


def test_images_do_not_depend_on_their_batch(small_dataset):
    source = _source(small_dataset)
    together = source.batch(np.arange(15), epoch=2)
    alone = source.batch(np.array([8]), epoch=2)
    torch.testing.assert_close(alone.images[0], together.images[8], rtol=0, atol=0)


def test_epochs_show_other_crops(small_dataset):
    source = _source(small_dataset)
    first, second = (source.batch(np.arange(5), epoch=epoch).images for epoch in (0, 1))
    assert not torch.equal(first, second)


def test_views_are_given_per_sample(small_dataset):
    batch = _source(small_dataset, CenterFlipView(32)).batch(
        np.array([2, 2]), views=np.array([0, 1])
    )
    torch.testing.assert_close(batch.images[1], batch.images[0].flip(-1))
    assert batch.views.tolist() == [0, 1]


def test_bad_sample_is_replaced_by_the_same_other_one_everywhere(dataset_copy):
    manifest = _damage(dataset_copy, 6)
    first = _source(manifest, AdmCenterView(32), ErrorBudget(1)).batch(np.array([1, 6, 2]))
    alone = _source(manifest, AdmCenterView(32), ErrorBudget(1)).batch(np.array([6]))
    (replaced,) = first.replacements
    assert (replaced.position, replaced.requested_id) == (1, 6)
    assert replaced.used_id == alone.replacements[0].used_id != 6
    shown = _source(manifest, AdmCenterView(32)).batch(np.array([replaced.used_id]))
    torch.testing.assert_close(first.images[1], shown.images[0])
    assert first.keys[1] == shown.keys[0]
    assert first.labels[1] == shown.labels[0]
    assert first.sample_ids.tolist() == [1, 6, 2]


def test_replacements_may_be_bad_too(dataset_copy):
    manifest = [_damage(dataset_copy, sample_id) for sample_id in range(12)][-1]
    batch = _source(manifest, AdmCenterView(32), ErrorBudget(12)).batch(np.arange(6))
    assert len(batch.replacements) == 6
    assert all(replaced.used_id >= 12 for replaced in batch.replacements)


def test_a_dataset_of_bad_samples_fails(dataset_copy):
    manifest = [_damage(dataset_copy, sample_id) for sample_id in range(15)][-1]
    with pytest.raises(DataError, match="replacements"):
        _source(manifest, AdmCenterView(32), ErrorBudget(100)).batch(np.arange(2))


def test_exhausted_budget_names_the_sample(dataset_copy):
    manifest = _damage(dataset_copy, 6)
    with pytest.raises(DataError, match=r"1 bad samples are more than max_bad_samples=0.*class"):
        _source(manifest).batch(np.array([6]))


def test_each_bad_sample_is_written_once(dataset_copy, tmp_path):
    manifest, quarantine = _damage(dataset_copy, 6), tmp_path / "logs" / "quarantine.jsonl"
    source = _source(manifest, AdmCenterView(32), ErrorBudget(5, quarantine))
    for _ in range(3):
        source.batch(np.array([6, 7]))
    (line,) = quarantine.read_text().splitlines()
    assert json.loads(line)["sample_id"] == 6
    assert json.loads(line)["reason"].startswith("not a JPEG, PNG or WebP image")
    assert set(json.loads(line)) == {"shard", "key", "sample_id", "reason"}


def test_a_resumed_run_knows_the_quarantined(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    ErrorBudget(5, path).record(BadSample("s", "k", 1, "r"))
    with path.open("a") as file:
        file.write('{"shard": "s", "ke')
    budget = ErrorBudget(1, path)
    budget.record(BadSample("s", "k", 1, "r"))
    assert budget.num_bad == 1
    with pytest.raises(DataError, match="2 bad samples"):
        budget.record(BadSample("s", "other", 2, "r"))


def test_prefetched_batches_are_the_same_in_order(small_dataset):
    source = _source(small_dataset)
    requests = [BatchRequest(np.array([i, i + 1]), epoch=i) for i in range(6)]
    with source.prefetch(requests, depth=2) as batches:
        for request, batch in zip(requests, batches, strict=True):
            expected = source.batch(request.ids, request.epoch)
            torch.testing.assert_close(batch.images, expected.images, rtol=0, atol=0)


@pytest.mark.parametrize("plain_first", [True, False])
def test_samples_of_a_mixture_are_those_of_their_datasets(small_dataset, dataset_copy, plain_first):
    """Numbered one dataset after the other; the bad one is replaced within its own."""
    damaged = _damage(dataset_copy, 6)
    alone = [_source(small_dataset), _source(damaged, budget=ErrorBudget(1), seed=5)]
    parts = [_source(small_dataset), _source(damaged, budget=ErrorBudget(1), seed=5)]
    if not plain_first:
        alone, parts = alone[::-1], parts[::-1]
    mixture = MixedSource(parts)
    ids, epochs = np.array([15 + 6, 2, 14, 15, 6, 29]), np.array([0, 1, 2, 3, 0, 5])
    found = mixture.pixels(ids, epochs)
    assert found.sample_ids.tolist() == ids.tolist()
    for at, (number, epoch) in enumerate(zip(ids.tolist(), epochs.tolist(), strict=True)):
        dataset, own = divmod(number, 15)
        expected = alone[dataset].pixels(np.array([own]), epoch)
        assert torch.equal(found.pixels[at], expected.pixels[0])
        assert found.labels[at] == expected.labels[0]
        assert found.keys[at] == expected.keys[0]
        for replaced, bad in zip(expected.replacements, expected.bad, strict=True):
            used = replaced.used_id + 15 * dataset
            assert found.replacements == [Replacement(at, number, used)]
            assert found.bad == [dataclasses.replace(bad, sample_id=number)]
    assert len(found.replacements) == 1
    assert mixture.class_names == small_dataset.classes


def test_a_mixture_of_other_classes_has_no_labels(small_dataset, class_folder, tmp_path):
    (class_folder / "class1").rename(class_folder / "another")
    other = pack_folder(class_folder, tmp_path / "packed")
    mixture = MixedSource([_source(small_dataset), _source(other)])
    assert mixture.batch(np.array([0, 14, 15, 29])).labels.tolist() == [-1] * 4
    assert mixture.class_names == []
    with pytest.raises(UserError, match="the same view"):
        MixedSource([_source(small_dataset), _source(other, AdmCenterView(32))])
    with pytest.raises(UserError, match="the same view"):
        MixedSource([])
