"""Reading token datasets by sample, and refusing the wrong ones."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.errors import DataError, UserError
from data_pipelines.order.plan import SamplePlan
from data_pipelines.storage.open import LocalStorage, open_storage
from data_pipelines.tokens.format import ExtraColumn
from data_pipelines.tokens.reader import TokenDataset
from data_pipelines.tokens.writer import pin_job, publish_shard
from data_pipelines.views import choose_views
from tests.support.known_tokens import SPEC, make_rows, make_shard, write_dataset


class RemoteFolder(LocalStorage):
    """A folder that is reached like object storage: no paths, only reads."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.shard_reads = 0

    def local_path(self, path: str) -> None:  # type: ignore[override]
        del path

    def exists(self, path: str) -> bool:
        return (self.root / path).is_file()

    def read(self, path: str) -> bytes:
        self.shard_reads += path.startswith("shards/")
        return (self.root / path).read_bytes()


def all_rows(spec=SPEC) -> list:
    return [make_rows(spec, i) for i in range(spec.num_shards)]


def test_counts(dataset_folder: Path):
    dataset = TokenDataset.open(dataset_folder)
    assert (dataset.num_samples, dataset.num_views, dataset.num_rows) == (10, 2, 20)
    assert dataset.shard_sizes.tolist() == [4, 4, 2]


def test_read_gives_the_rows_asked_for(dataset_folder: Path):
    tokens = np.concatenate([rows.tokens[:, :, 0] for rows in all_rows()]).reshape(10, 2, 16)
    ids, views = np.array([9, 0, 3, 3, 4, 9]), np.array([1, 0, 1, 0, 1, 1])
    batch = TokenDataset.open(dataset_folder).read(ids, views)
    assert np.array_equal(batch.tokens, tokens[ids, views])
    assert np.array_equal(batch.labels, ids % 3)
    assert batch.tokens.dtype == batch.labels.dtype == np.int64
    assert np.array_equal(batch.sample_ids, ids)


def test_views_default_to_the_first(dataset_folder: Path):
    dataset, ids = TokenDataset.open(dataset_folder), np.arange(10)
    first = dataset.read(ids, np.zeros(10, dtype=np.int64))
    assert np.array_equal(dataset.read(ids).tokens, first.tokens)


def test_empty_read(dataset_folder: Path):
    assert TokenDataset.open(dataset_folder).read(np.array([], dtype=np.int64)).tokens.shape == (
        0,
        16,
    )


def test_groups_have_their_own_axis(make_dataset: Callable[..., Path]):
    folder = make_dataset(codebook_sizes=(17**2, 17**3))
    batch = TokenDataset.open(folder).read(np.array([0, 5]))
    assert batch.tokens.shape == (2, 16, 2)


def test_extra_columns_are_read_on_demand(make_dataset: Callable[..., Path]):
    spec = replace(SPEC, extra_columns={"teacher": ExtraColumn("float32", (2, 3))})
    dataset = TokenDataset.open(make_dataset(extra_columns=spec.extra_columns))
    batch = dataset.read(np.array([5, 1]), np.array([1, 0]), columns=["teacher"])
    expected = np.concatenate([rows.extra["teacher"] for rows in all_rows(spec)])
    assert np.array_equal(batch.extra["teacher"], expected[[11, 2]])
    with pytest.raises(DataError, match="has no column dino"):
        dataset.read(np.array([0]), columns=["dino"])


def test_labels_of_all_samples(dataset_folder: Path):
    assert TokenDataset.open(dataset_folder).labels.tolist() == [i % 3 for i in range(10)]


def test_latent_statistics_are_kept(dataset_folder: Path):
    statistics = TokenDataset.open(dataset_folder).spec.latent_statistics
    assert statistics is not None
    assert statistics.mean == (1 / 32, 2 / 32, 3 / 32, 4 / 32)


def test_foreign_tokenizer_is_refused(dataset_folder: Path):
    with pytest.raises(UserError, match=f" {'f' * 12},.* {'a' * 12} ") as error:
        TokenDataset.open(dataset_folder, expected_fingerprint="a" * 64)
    assert "\n" not in str(error.value)


def test_own_tokenizer_is_accepted(dataset_folder: Path):
    assert TokenDataset.open(dataset_folder, expected_fingerprint="f" * 64).num_rows == 20


def test_unfinished_dataset_says_how_far_it_is(tmp_path: Path):
    storage = open_storage(tmp_path)
    pin_job(storage, SPEC)
    publish_shard(storage, 0, make_shard(SPEC, 0))
    with pytest.raises(DataError, match=r"unfinished .*1 of 3 shards.*continues"):
        TokenDataset.open(tmp_path)


def test_empty_folder_is_no_dataset(tmp_path: Path):
    with pytest.raises(DataError, match="holds no token dataset"):
        TokenDataset.open(tmp_path)


def test_torn_manifest_is_refused(dataset_folder: Path):
    path = dataset_folder / "tokens.json"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged"):
        TokenDataset.open(dataset_folder)


def test_manifest_and_table_of_different_runs_are_refused(dataset_folder: Path):
    with (dataset_folder / "tokens.arrow").open("ab") as file:
        file.write(b"x")
    with pytest.raises(DataError, match="does not match"):
        TokenDataset.open(dataset_folder)


@pytest.mark.parametrize("keep", [0, 100])
def test_cut_shard_is_refused(dataset_folder: Path, keep: int):
    path = dataset_folder / "shards/tokens-00000001.arrow"
    path.write_bytes(path.read_bytes()[:keep])
    dataset = TokenDataset.open(dataset_folder)
    with pytest.raises(DataError, match=r"tokens-00000001.arrow"):
        dataset.read(np.array([5]))


def test_missing_shard_is_named(dataset_folder: Path):
    (dataset_folder / "shards/tokens-00000001.arrow").unlink()
    with pytest.raises(DataError, match=r"tokens-00000001.arrow is missing"):
        TokenDataset.open(dataset_folder).read(np.array([5]))


@pytest.mark.parametrize(("ids", "views"), [([10], [0]), ([-1], [0]), ([0], [2])])
def test_rows_outside_the_dataset_are_refused(dataset_folder: Path, ids: list, views: list):
    with pytest.raises(DataError, match="were asked of"):
        TokenDataset.open(dataset_folder).read(np.array(ids), np.array(views))


def test_dataset_can_be_sent_to_another_process(dataset_folder: Path):
    dataset = TokenDataset.open(dataset_folder)
    dataset.read(np.arange(10))
    copy = pickle.loads(pickle.dumps(dataset))
    assert np.array_equal(copy.read(np.arange(10)).tokens, dataset.read(np.arange(10)).tokens)


def test_remote_shards_are_fetched_once_per_machine(dataset_folder: Path, tmp_path: Path):
    remote, expected = RemoteFolder(dataset_folder), TokenDataset.open(dataset_folder)
    for _ in range(2):
        dataset = TokenDataset.open(remote, cache_folder=tmp_path / "cache")
        ids = np.arange(10)
        assert np.array_equal(dataset.read(ids).tokens, expected.read(ids).tokens)
    assert remote.shard_reads == 3


def test_damaged_remote_shard_is_refused(dataset_folder: Path, tmp_path: Path):
    path = dataset_folder / "shards/tokens-00000000.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    dataset = TokenDataset.open(RemoteFolder(dataset_folder), cache_folder=tmp_path / "cache")
    with pytest.raises(DataError, match="sha256"):
        dataset.read(np.array([0]))


def test_plan_runs_over_samples(dataset_folder: Path):
    dataset = TokenDataset.open(dataset_folder)
    plan = SamplePlan(dataset.digest, dataset.shard_sizes, 5, seed=0)
    seen = np.concatenate([plan.batch_ids(step) for step in range(2)])
    assert sorted(seen.tolist()) == list(range(10))


def test_views_are_chosen_evenly_and_anew_each_epoch():
    ids = np.arange(100_000)
    first, second = choose_views(0, 0, ids, 10), choose_views(0, 1, ids, 10)
    assert abs(np.bincount(first, minlength=10) - 10_000).max() < 400
    assert 0.08 < (first == second).mean() < 0.12


def test_chosen_view_depends_on_the_sample_alone():
    ids = np.array([5, 3, 99])
    assert np.array_equal(choose_views(1, 2, ids, 7)[1:], choose_views(1, 2, ids[1:], 7))


def test_same_contents_have_the_same_digest(tmp_path: Path):
    one, two = write_dataset(tmp_path / "one"), write_dataset(tmp_path / "two")
    assert TokenDataset.open(one).digest == TokenDataset.open(two).digest
