"""The data order: complete, independent of the world size, resumable by one integer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import UserError
from data_pipelines.order.plan import SamplePlan, choose_num_lanes


def _sizes(num_samples: int, num_shards: int) -> list[int]:
    bounds = np.linspace(0, num_samples, num_shards + 1).astype(int)
    return np.diff(bounds).tolist()


def _plan(num_samples: int = 1437, num_shards: int = 3, batch: int = 64, **options) -> SamplePlan:
    options = {"seed": 7, **options}
    return SamplePlan("digest", _sizes(num_samples, num_shards), batch, **options)


def _epoch_ids(plan: SamplePlan, epoch: int) -> np.ndarray:
    first = epoch * plan.steps_per_epoch
    return np.concatenate([plan.batch_ids(first + k) for k in range(plan.steps_per_epoch)])


@settings(max_examples=25)
@given(
    num_samples=st.integers(16, 1500),
    num_shards=st.integers(1, 9),
    batch=st.sampled_from([1, 4, 6, 16]),
    window=st.sampled_from([1, 7, 64, 16_384]),
    epoch=st.integers(0, 3),
)
def test_no_sample_twice_in_an_epoch(num_samples, num_shards, batch, window, epoch):
    plan = _plan(num_samples, num_shards, batch, shuffle_window=window)
    ids = _epoch_ids(plan, epoch)
    assert len(np.unique(ids)) == len(ids) == plan.steps_per_epoch * batch
    assert ids.min() >= 0
    assert ids.max() < num_samples


def test_an_epoch_covers_everything_when_the_batch_divides_it():
    plan = _plan(1024, 5, 64, shuffle_window=16, num_lanes=8)
    assert sorted(_epoch_ids(plan, 2)) == list(range(1024))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 48, 64, 100])
def test_global_batch_is_the_same_for_any_world_size(world_size):
    plan, fresh = _plan(batch=48), _plan(batch=48)
    for step in (0, 11, 28, 29, 30, 1000):
        slices = [fresh.rank_ids(step, rank, world_size) for rank in range(world_size)]
        np.testing.assert_array_equal(np.concatenate(slices), plan.batch_ids(step))
        lengths = [len(part) for part in slices]
        assert max(lengths) - min(lengths) <= 1


def test_a_step_does_not_depend_on_the_steps_asked_before():
    used = _plan()
    for step in range(100):
        used.batch_ids(step)
    np.testing.assert_array_equal(used.batch_ids(57), _plan().batch_ids(57))


@pytest.mark.parametrize("world_size", [1, 3, 5])
def test_every_sample_of_a_share_has_its_epoch(world_size):
    plan = _plan()
    for rank in range(world_size):
        step = 2 * plan.steps_per_epoch + 1
        epochs = plan.rank_epochs(step, rank, world_size)
        assert epochs.tolist() == [2] * len(plan.rank_ids(step, rank, world_size))


@pytest.mark.parametrize(("rank", "world_size"), [(-1, 2), (2, 2), (3, 2)])
def test_a_rank_that_is_not_there_is_refused(rank, world_size):
    with pytest.raises(UserError, match=f"rank={rank} is not allowed; use 0 to 1"):
        _plan().rank_ids(0, rank, world_size)


def test_layouts_of_far_epochs_are_forgotten():
    """Training for years must not keep one for every epoch; the neighbours stay."""
    plan = _plan()
    kept = []
    for epoch in range(6):
        kept.append(plan._layout(epoch))
        assert len(plan._layouts) <= 3
    assert plan._layout(4) is kept[4]


def test_every_epoch_has_its_own_order():
    plan = _plan()
    assert not np.array_equal(_epoch_ids(plan, 0), _epoch_ids(plan, 1))


def test_the_samples_left_out_change_with_the_epoch():
    plan = _plan(num_samples=100, num_shards=1, batch=64)
    left_out = [set(range(100)) - set(_epoch_ids(plan, epoch).tolist()) for epoch in range(3)]
    assert left_out[0] != left_out[1] != left_out[2]


def test_tail_of_a_single_shard_is_not_always_left_out():
    plan = _plan(num_samples=1003, num_shards=1, batch=4, shuffle_window=10, num_lanes=4)
    left_out = [set(range(1003)) - set(_epoch_ids(plan, epoch).tolist()) for epoch in range(4)]
    assert len({frozenset(part) for part in left_out}) == 4


def test_seed_changes_the_order():
    assert not np.array_equal(_plan(seed=1).batch_ids(0), _plan(seed=2).batch_ids(0))


def test_class_sorted_data_is_mixed_within_the_first_batch():
    plan = _plan(num_samples=64_000, num_shards=64, batch=64, shuffle_window=512)
    assert plan.lanes == 64
    assert len(np.unique(plan.batch_ids(0) // 1000)) > 32


def test_reads_of_a_lane_stay_near_each_other():
    plan = _plan(num_samples=64_000, num_shards=64, batch=64, shuffle_window=500, num_lanes=8)
    lane = np.concatenate([plan.rank_ids(step, 0, 8) for step in range(50)])
    assert len(np.unique(lane // 1000)) <= 3


def test_two_billion_samples_need_no_memory_per_sample():
    plan = SamplePlan("digest", np.full(200_000, 10_000), 8192, seed=3, shuffle_window=65_536)
    ids = plan.batch_ids(123_456)
    assert len(np.unique(ids)) == 8192
    assert ids.max() > 2**30


@pytest.mark.parametrize(
    ("num_samples", "batch", "lanes"),
    [
        (1_437, 64, 1),
        (50_000, 128, 2),
        (1_281_167, 1024, 64),
        (1_281_167, 96, 48),
        (2_000_000, 130, 26),
    ],
)
def test_lanes_fit_the_dataset(num_samples, batch, lanes):
    assert choose_num_lanes(num_samples, batch, 16_384) == lanes


def test_dataset_smaller_than_a_batch_is_refused():
    with pytest.raises(UserError, match="10 samples, fewer than global_batch_size=64"):
        _plan(num_samples=10)


def test_lanes_that_do_not_divide_the_batch_are_refused():
    with pytest.raises(UserError, match="num_lanes=7 does not divide"):
        _plan(num_lanes=7)


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"batch": 32}, {"shuffle_window": 5}, {"num_shards": 4}, {"num_lanes": 2}],
)
def test_digest_names_everything_that_decides_the_order(change):
    assert _plan(**change).digest != _plan().digest


def test_plans_are_equal_where_their_order_is():
    assert _plan() == _plan()
    assert hash(_plan()) == hash(_plan())
    assert _plan(seed=8) != _plan()
    assert _plan() != _plan().digest


def test_digest_depends_on_the_dataset():
    assert SamplePlan("a", [10], 2, seed=0).digest != SamplePlan("b", [10], 2, seed=0).digest


def test_order_is_pinned_across_machines_and_versions():
    plan = _plan(num_samples=1000, num_shards=3, batch=8, shuffle_window=64, num_lanes=4)
    assert plan.batch_ids(0).tolist() == PINNED_STEP_0
    assert plan.batch_ids(130).tolist() == PINNED_STEP_130


PINNED_STEP_0 = [709, 710, 963, 949, 519, 523, 104, 111]
PINNED_STEP_130 = [962, 968, 561, 556, 113, 140, 697, 706]
